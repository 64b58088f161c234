"""check_payloads: in development, problems of payloads are reported at the recording call."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from typing import Literal

import anyio
import pytest
from msgspec import Raw, Struct
from support.harness import AGENT

from prefactor_core import (
    DataCategory,
    PrefactorValueError,
    SchemaRegistry,
    SpanParams,
    open_prefactor,
    redact_keys,
    sensitive,
    traced,
)
from prefactor_core.testing import Recording

LABEL: DataCategory = "personal_identifiers"


class Answer(Struct):
    response: str


class Ask(Struct, SpanParams[Answer]):
    prompt: str


registry = SchemaRegistry()
registry.register_type("agent:ask", params=Ask, result=Answer)
registry.register_type("agent:any", {"type": "object"})
registry.register_quality_schema("score", {"properties": {"score": {"type": "number"}}})

PROMPT = "the payload of an 'agent:ask' span does not fit its schema: payload.prompt: 3 is not of"
RESPONSE = "the result of an 'agent:ask' span does not fit its schema: result.response: 3 is not"


async def test_by_default_nothing_is_checked(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with instance.span("agent:ask", payload={"prompt": 3}) as span:
            span.set_result({"response": 3})
        with instance.span("agent:aks"):
            pass
    assert prefactor.run.outline == "complete\nagent:ask complete\nagent:aks complete"


async def test_what_fits_is_recorded_without_a_word(
    prefactor: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    for mode in ("warn", "raise"):
        async with (
            prefactor.open(schema_registry=registry, check_payloads=mode) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            async with instance.span(Ask("Hello")) as span:
                await span.complete(Answer("Hi there"))
            with instance.span("agent:ask") as step:
                step.start_nowait({"prompt": "Hello"})
                step.set_result({"response": "Hi", "more": 1})
            with instance.span("agent:any"):
                pass
            await instance.record_quality("score", {"score": 0.5})
            await instance.record_quality("score")
    assert caplog.messages == []


async def test_a_payload_that_does_not_fit_raises_where_it_is_given(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry, check_payloads="raise") as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with pytest.raises(PrefactorValueError, match=PROMPT):
            async with instance.span("agent:ask", payload={"prompt": 3}):
                pytest.fail("it was entered")
        with pytest.raises(PrefactorValueError, match=PROMPT):
            async with instance.span("agent:ask") as span:
                await span.start({"prompt": 3})
        with pytest.raises(PrefactorValueError, match=PROMPT):
            await instance.create_span("agent:ask", payload={"prompt": 3})
        with pytest.raises(PrefactorValueError, match="^span type 'agent:aks' is not"):
            with instance.span("agent:aks", payload={}):
                pytest.fail("it was entered")
        with pytest.raises(PrefactorValueError, match="'score' does not fit its schema"):
            await instance.record_quality("score", {"score": "high"})
        with pytest.raises(PrefactorValueError, match="^quality schema 'scor' is not"):
            await instance.record_quality("scor", {"score": 1})
    # The one that was entered failed by it.
    assert prefactor.run.outline == "complete\nagent:ask failed"


async def test_a_result_that_does_not_fit_raises_after_it_is_recorded(
    prefactor: Recording,
) -> None:
    async with (
        prefactor.open(schema_registry=registry, check_payloads="raise") as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with pytest.raises(PrefactorValueError, match=RESPONSE):
            async with instance.span(Ask("Hello")) as span:
                await span.complete({"response": 3})  # type: ignore[arg-type]
        with pytest.raises(PrefactorValueError, match=RESPONSE):
            with instance.span("agent:ask", payload={"prompt": "Hello"}) as step:
                step.set_result({"response": 3})
        with pytest.raises(PrefactorValueError, match="'response' is a required property"):
            with instance.span("agent:ask", payload={"prompt": "Hello"}) as step:
                step.set_result({"respons": "Hi"})
        with instance.span(Ask("Hello")):
            pass  # without a result there is nothing to check
        # A payload that is never given shows only at the end.
        with pytest.raises(PrefactorValueError, match="'prompt' is a required property"):
            with instance.span("agent:ask"):
                pass
    assert [span.status for span in prefactor.run.spans] == ["complete"] * 5
    assert prefactor.run.spans[0].result == {"response": 3}


async def test_the_agents_own_error_goes_before_what_does_not_fit(prefactor: Recording) -> None:
    mine = ZeroDivisionError()
    async with (
        prefactor.open(schema_registry=registry, check_payloads="raise") as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with pytest.raises(ZeroDivisionError) as raised:
            async with instance.span(Ask("Hello")) as span:
                span.set_result({"response": 3})  # type: ignore[arg-type]
                raise mine
        assert raised.value is mine
        with instance.span(Ask("Hello")) as skipped:
            skipped.cancel_nowait()
        with instance.span(Ask("Hello")) as given_up:
            given_up.fail_nowait({"reason": "away"})
    statuses = [span.status for span in prefactor.run.spans]
    assert statuses == ["failed", "cancelled", "failed"]


async def test_each_problem_is_logged_once(
    prefactor: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    @traced("agent:ask")
    def ask(prompt: object) -> Answer:
        return Answer("Hi")

    async with prefactor.open(schema_registry=registry, check_payloads="warn") as client:
        for _ in range(2):
            async with client.agent_instance(**AGENT) as instance:
                for n in (3, 4):
                    with instance.span("agent:ask", payload={"prompt": n}) as span:
                        span.set_result({"response": 3})
                ask(3)
    assert all(run.outline.count("agent:ask complete") == 3 for run in prefactor.runs)
    records = [(r.name, r.levelno) for r in caplog.records]
    assert records == [("prefactor_core.schema_registry.payload_check", logging.WARNING)] * 2
    assert caplog.messages[0].startswith(PROMPT)
    assert caplog.messages[1].startswith(RESPONSE)


async def test_what_is_sensitive_is_checked_as_what_it_is_and_not_shown(
    prefactor: Recording,
) -> None:
    async with (
        prefactor.open(schema_registry=registry, check_payloads="raise") as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with instance.span("agent:ask", payload={"prompt": sensitive("xyzzy", LABEL)}) as span:
            span.set_result({"response": "Hi"})
        with pytest.raises(PrefactorValueError, match=r"payload.prompt: \[personal_id") as raised:
            with instance.span("agent:ask", payload={"prompt": sensitive(4321, LABEL)}):
                pytest.fail("it was entered")
    assert "4321" not in str(raised.value)


async def test_what_is_checked_is_what_is_recorded(prefactor: Recording) -> None:
    options = {"schema_registry": registry, "redact": redact_keys("prompt")}
    async with (
        prefactor.open(**options, check_payloads="raise") as client,  # type: ignore[arg-type]
        client.agent_instance(**AGENT) as instance,
        instance.span("agent:ask", payload={"prompt": 3}) as span,  # a text, once it is redacted
    ):
        span.set_result({"response": "x" * 1_000_000})
    async with (
        prefactor.open(
            schema_registry=registry, check_payloads="raise", capture_payloads=False
        ) as client,
        client.agent_instance(**AGENT) as instance,
        instance.span("agent:ask", payload={"prompt": 3}),
    ):
        pass


async def test_runs_of_one_client_are_checked_by_their_own_schemas(prefactor: Recording) -> None:
    version = {"span_schemas": {"agent:ask": {"properties": {"prompt": {"type": "integer"}}}}}
    async with prefactor.open(schema_registry=registry, check_payloads="raise") as client:
        first = await client.create_agent_instance(**AGENT)
        second = await client.create_agent_instance(**AGENT, agent_schema_version=version)
        with second.span("agent:ask", payload={"prompt": 3}):
            pass
        with pytest.raises(PrefactorValueError, match=PROMPT):
            with first.span("agent:ask", payload={"prompt": 3}):
                pytest.fail("it was entered")


async def test_checking_runs_no_code_of_a_payload_and_never_raises_for_it(
    prefactor: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    class Unsized(dict[str, object]):
        def __len__(self) -> int:
            raise RuntimeError("nobody knows")

        def __bool__(self) -> bool:
            raise RuntimeError("nobody knows")

    async with (
        prefactor.open(schema_registry=registry, check_payloads="warn") as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with instance.span("agent:ask", payload=Unsized(prompt="Hello")) as span:
            span.set_result({"response": "Hi there"})
        assert caplog.messages == []
        with instance.span("agent:ask", payload={"prompt": Raw(b"{no")}) as span:
            span.set_result({"response": "Hi there"})
        assert caplog.messages == []  # a text stands for what is no JSON
    assert [span.status for span in prefactor.run.spans] == ["complete"] * 2


@pytest.mark.parametrize("mode", ["warn", "raise"])
async def test_what_cannot_be_checked_in_time_is_recorded_and_said_once(
    prefactor: Recording, caplog: pytest.LogCaptureFixture, mode: Literal["warn", "raise"]
) -> None:
    twice = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    hostile = SchemaRegistry()
    hostile.register("agent:slow", {"$ref": "#/$defs/d0", "$defs": {**twice, "d40": {}}})
    hostile.register("agent:back", {"properties": {"a": {"pattern": r"^(a*)*\1$"}}})
    hostile.register("agent:evil", {"properties": {"a": {"pattern": "^(a+)+$"}}})
    options = {"schema_registry": hostile, "drain_timeout": 0.1}
    async with (
        prefactor.open(**options, check_payloads=mode) as client,  # type: ignore[arg-type]
        client.agent_instance(**AGENT) as instance,
    ):
        for _ in range(3):
            with instance.span("agent:slow", payload={"a": 1}):
                pass
            with instance.span("agent:back", payload={"a": "a" * 50 + "!"}):
                pass
            with instance.span("agent:evil", payload={"a": "a" * 50}):
                pass
        with anyio.fail_after(20):
            await client.flush()
    assert prefactor.run.outline.count(" complete") == 9
    assert prefactor.run.flags == []
    # Once each by the client, and by the server that it records to.
    loggers = [record.name for record in caplog.records]
    assert loggers == ["prefactor_core.schema_registry.schema_check"] * 4
    warned = sorted({message.partition(", by its schema: ")[0] for message in caplog.messages})
    assert warned == [f"not checked is the payload of 'agent:{name}'" for name in ("back", "slow")]


async def test_runs_with_schemas_by_turns_say_once_what_cannot_be_checked(
    prefactor: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    versions = [
        {"span_schemas": {name: {"properties": {"a": {"pattern": r"(a)\1"}}}}}
        for name in ("agent:one", "agent:two")
    ]
    async with prefactor.open(schema_registry=registry, check_payloads="warn") as client:
        for _ in range(3):
            for version in versions:
                async with client.agent_instance(**AGENT, agent_schema_version=version) as instance:
                    for name in version["span_schemas"]:
                        with instance.span(name, payload={"a": "aa"}):
                            pass
        first = [message for message in caplog.messages if "'agent:one'" in message]
    # The other one is of the server.
    assert len(first) == len(caplog.messages) - len(first) <= 2


def test_without_the_extra_the_client_does_not_open() -> None:
    program = """
        import sys, anyio
        sys.modules["jsonschema"] = None
        from prefactor_core import PrefactorValueError, open_prefactor

        async def main():
            try:
                async with open_prefactor(
                    api_url="http://prefactor.invalid", api_token="t", check_payloads="warn"
                ):
                    print("open")
            except PrefactorValueError as error:
                print(error)

        anyio.run(main)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "checking payloads needs the extra 'check' of this package" in done.stdout


def test_a_mode_that_there_is_not_is_refused() -> None:
    message = "^check_payloads must be 'off', 'warn' or 'raise', got True$"
    with pytest.raises(PrefactorValueError, match=message):
        open_prefactor(api_url="local::memory:", check_payloads=True)  # type: ignore[arg-type]
