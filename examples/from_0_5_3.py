"""From prefactor-core 0.5.3: a program that was written for it runs here, with one import changed.

    python examples/from_0_5_3.py            # or with: trio

``HttpClientConfig`` comes from this package; an object of ``prefactor_http`` works as well. The
names, module paths, orders of arguments and keywords of 0.5.3 are accepted, and the program below
uses those that are its own: the version of a run in first place, the payload of ``client.span()``
in fourth, times by position, ``schema_name=`` in a registry. A ``Queue`` of your own with the five
methods of 0.5.3 works as it is.

What is different, on purpose:

* **Opening asks nothing of the API.** ``initialize()`` checked the token by a request, and an API
  that was away stopped the program. With ``validate_token=True`` a wrong token still raises there;
  an API that is away is one warning.
* **The errors of prefactor_http are in this package**: ``PrefactorApiError``,
  ``PrefactorAuthError``, ``PrefactorNotFoundError`` and ``PrefactorValidationError`` with the same
  attributes, ``PrefactorContractError`` for ``PrefactorResponseContractError``. Nothing takes the
  place of ``PrefactorRetryExhaustedError``: attempts go on while the client is open.
* **Of the calls that record, only ``create_agent_instance()`` waits for the API**, for at most
  ``registration_timeout`` seconds, and raises if the API refuses. The others are delivered in the
  background: take the ``except`` for errors of the API away from ``span.start()``, ``complete()``
  and ``finish()``.
* **One refused operation stops nothing.** It is counted (``client.statistics()``) and logged, and
  the others are delivered. 0.5.3 stopped all telemetry, and raised
  ``PrefactorTelemetryFailureError`` at the next calls, or else at ``close()``. With
  ``raise_on_loss=True`` it is raised once, at the end of the client.
* **A span ends as its block does.** It was ``complete`` also when the block raised; now it is
  ``failed``, with the error as its result, or ``cancelled``. A span that you end yourself keeps the
  end that you gave.
* **``span.id`` does not change with ``start()``.**
* **Times need a time zone.** A naive ``datetime`` raises ``PrefactorValueError``, a ``ValueError``.
* **The schema version is named by its content**, not by the time: the same span types are the same
  version in every run. ``external_schema_version_id=`` names it as before.
* **A terminated run stops.** Its next ``span()`` raises ``PrefactorTerminatedError``, and
  ``instance.terminated`` has the reason, for every run of a client. The block of
  ``client.agent_instance()`` is cancelled as well.
* **Small ones.** ``finish_span()`` for a span that is not open raises ``SpanNotFoundError``, not
  ``KeyError``. ``client.instance_manager`` raises before the client is open, and is never None.
  Configurations are structs, not models of pydantic: ``config.replace(...)`` in place of
  ``model_copy()``. ``TaskExecutor`` is a scope, ``async with TaskExecutor(queue, handle):``, in
  place of ``start()`` and ``stop()``. An ``Operation`` has typed fields in place of a dict.

New programs use one scope for the client and one for the run: ``examples/quick_start.py``.

It leaves this tree::

    complete
    agent:run complete
      agent:llm complete
      agent:tool complete
      agent:tool failed
      agent:tool cancelled
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta

import anyio

from prefactor_core import (
    PrefactorApiError,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    QueueConfig,
    SchemaRegistry,
)
from prefactor_core.config import HttpClientConfig  # was: from prefactor_http.config import ...

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"
BEGIN = datetime.now(UTC) - timedelta(seconds=10)

registry = SchemaRegistry()
for name in ("agent:run", "agent:llm", "agent:tool"):
    registry.register(schema_name=name, schema={"type": "object"})


async def run_agent(client: PrefactorCoreClient) -> None:
    instance = await client.create_agent_instance(
        {"name": "Older agent", "external_identifier": "v1.0.0"}, None, "older-agent"
    )
    await instance.start(BEGIN)
    async with client.span(instance.id, "agent:run", None, {"input": "How high?"}) as run:
        await run.start(None, BEGIN)

        async with instance.span("agent:llm") as span:
            await span.start({"prompt": "Plan"}, BEGIN + timedelta(seconds=1))
            await span.complete({"response": "search"}, BEGIN + timedelta(seconds=3))

        span_id = await instance.create_span(
            "agent:tool", None, {"tool": "search"}, BEGIN + timedelta(seconds=4)
        )
        await instance.finish_span(span_id, {"height": 21_900}, BEGIN + timedelta(seconds=6))

        try:
            async with instance.span("agent:tool", payload={"tool": "archive"}):
                raise LookupError("no such mountain")
        except LookupError:
            pass  # 0.5.3 stored this span as complete

        async with instance.span("agent:tool") as span:
            await span.cancel()  # a step that is skipped
    await instance.finish("complete")


async def main() -> None:
    config = PrefactorCoreConfig(
        http_config=HttpClientConfig(api_url=API_URL),
        queue_config=QueueConfig(num_workers=3, max_retries=3),
        schema_registry=registry,
    )
    client = PrefactorCoreClient(config, None, "my-adapter@1.0.0")
    await client.initialize()
    try:
        await run_agent(client)
    except PrefactorApiError as error:
        print("the API refuses the run:", error.status_code, error.code)
    finally:
        await client.close()  # noqa: ASYNC102 - it is shielded itself
    print(f"lost operations: {client.statistics().lost}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
