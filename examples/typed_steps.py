"""Typed steps: span types made from Python types, data risk, checks and quality.

    python examples/typed_steps.py            # or with: trio

A span type has a name, a schema for its payload and one for its result. Both can be Python types:
msgspec structs, dataclasses, TypedDicts or pydantic models. Their JSON Schemas are made from them.

========================================================  ========================================
registered by                                             opened by
========================================================  ========================================
``@registry.span_type(name)`` above the parameters        ``instance.span(AskForecast("Oslo"))``
``registry.register_type(name, params=A, result=R)``      the same
``step = registry.register_type(name, params=SomeDict)``  ``instance.span(step({"city": "Oslo"}))``
``registry.register(name, schema)``,                      ``instance.span(name, payload={...})``,
``register_result(name, schema)``,                        which works for every type
``register_type(name, params_schema=, result_schema=)``
========================================================  ========================================

A class of parameters that derives from ``SpanParams[Forecast]`` tells type checkers, and the
registry, that its spans result in a ``Forecast``.

``template`` says how a span is shown: Liquid over the fields of parameters and result. A field
that neither has is a ``PrefactorValueError`` at once. ``data_risk`` says what a step may do and
which data it touches; what you leave out is ``unknown``.

All types of a registry form one schema version. Its identifier is a hash of the content, and the
docstrings of the classes are part of it: the same types are the same version in every run.
Without a registry, each run needs ``agent_schema_version=``, a mapping as the API accepts it.

Prefactor stores a payload that does not fit its schema, and flags it. In development,
``check_payloads="warn"`` logs misfits and span types that are not registered; ``"raise"`` raises
a ``PrefactorValueError`` where the span opens, which is not recorded then, or where it ends, which
is. This needs the extra ``check``. The check sees what is recorded, after ``redact=``, and results
only of spans that end as ``complete``. A field that the schema does not name fits, and so does a
missing result.

The check runs in the agent's code, so it is bounded. It skips payloads of more than 10,000 parts
or 64 levels, texts of more than 10,000 characters that have a ``pattern``, schemas beyond those
bounds, patterns with back references, look-behinds, flags or more than 1,000 characters, and a
schema that once took half a second for one payload. One warning for each type says so. The
embedded Prefactor has the same bounds, and renders no template of more than 10,000 characters or
100 tags.

It leaves this tree::

    complete
    agent:forecast complete
    agent:transfer complete
    agent:rating complete
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TypedDict

import anyio
from msgspec import Struct

from prefactor_core import (
    ActionProfile,
    DataCategories,
    DataRisk,
    PrefactorValueError,
    Sensitive,
    SpanParams,
    open_prefactor,
    sensitive,
)
from prefactor_core.span_types import standard_types

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"

registry = standard_types()  # the usual steps, to add others to


class Forecast(Struct):
    degrees: float


@registry.span_type("agent:forecast", template="{{city}}: {{degrees}} °C")
class AskForecast(Struct, SpanParams[Forecast]):
    city: str
    days: int = 1


@dataclass
class Transfer:
    amount: float
    iban: str | Sensitive  # a field whose value may be marked


registry.register_type(
    "agent:transfer",
    params=Transfer,
    data_risk=DataRisk(
        action_profile=ActionProfile(financial_transactions="allowed", destroy_data="disallowed"),
        params_data_categories=DataCategories(
            financial_information="included", classification="confidential"
        ),
    ),
)


class Rating(TypedDict):
    stars: int


rate = registry.register_type("agent:rating", params=Rating)


class Accuracy(Struct):
    score: float


registry.register_quality_schema("accuracy", Accuracy, template="{{score}}")


async def main() -> None:
    async with open_prefactor(
        api_url=API_URL, schema_registry=registry, check_payloads="raise"
    ) as client:
        async with client.agent_instance("typed-steps", {"name": "Typed steps"}) as instance:
            async with instance.span(AskForecast("Oslo")) as forecast:
                forecast.set_result(Forecast(degrees=-3.5))

            try:
                with instance.span("agent:transfer", payload={"amount": "a lot"}):
                    pass
            except PrefactorValueError as error:
                print(f"refused: {str(error).splitlines()[0]}")

            # It is recorded, and marked. Prefactor decides who sees it.
            iban = sensitive("NO93 8601 1117 947", "financial_information")
            async with instance.span(Transfer(amount=9.5, iban=iban)):
                pass

            async with instance.span(rate({"stars": 5})):
                pass

        # What is found out about a run, during it or later. The last call for a name counts, and
        # None removes it. instance.record_quality(name, payload) is the same for a run at hand.
        # A rating by a person is a span: instance.span(Feedback(rating="up")).
        await client.record_quality(instance.id, "accuracy", Accuracy(score=1.0))
    print(f"lost operations: {client.statistics().lost}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
