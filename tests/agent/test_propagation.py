"""Steps across processes: what ``inject()`` writes, and the run that ``parent=`` begins."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.harness import (
    AGENT,
    make_config,
    open_faulty_api,
    recording,
)

from prefactor_core import SpanContextStack, open_prefactor
from prefactor_core.operations.cause import FIELD
from prefactor_core.operations.identifiers import generate
from prefactor_core.operations.trace_headers import new_traceparent
from prefactor_core.operations.trace_ids import span_id_of, trace_id_of
from prefactor_core.span_types import LLMCall, standard_types
from prefactor_core.testing import open_recording

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def injected(client: Any, **headers: str) -> dict[str, str]:
    client.inject(headers)
    return headers


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def step(run_id: str, span_id: str | None = None) -> dict[str, str]:
    """The headers that name a step of a run that nothing caused."""
    ids = f"prefactor.run_id={run_id}" + (f",prefactor.span_id={span_id}" if span_id else "")
    traceparent = new_traceparent(trace_id_of(run_id), span_id_of(span_id or run_id))
    return {"traceparent": traceparent, "baggage": ids}


async def test_the_step_is_the_innermost_open_span_of_the_current_run() -> None:
    async with recording() as r:
        run_id = r.instance.id
        assert injected(r.client) == step(run_id)
        with r.instance.span("agent:run") as outer:
            assert injected(r.client) == step(run_id, outer.id)
            async with r.instance.span("agent:tool") as inner:
                assert injected(r.client) == step(run_id, inner.id)
                with r.instance.span("agent:llm").detached():
                    assert injected(r.client) == step(run_id, inner.id)
                # In another thread, and in a task, as in this one.
                assert await anyio.to_thread.run_sync(injected, r.client) == step(run_id, inner.id)
            # A run inside of the step: its own steps are the current ones.
            async with r.client.agent_instance(**AGENT) as other:
                assert injected(r.client) == step(other.id)
                with other.span("agent:run") as span:
                    assert injected(r.client) == step(other.id, span.id)
            assert injected(r.client) == step(run_id, outer.id)
        assert injected(r.client) == step(run_id)
        pushed = generate(0)
        SpanContextStack.push(pushed)
        assert injected(r.client) == step(run_id, pushed)
        SpanContextStack.pop()


async def test_outside_of_a_run_nothing_is_written() -> None:
    async with recording() as r, open_prefactor(make_config(), asgi_app=r.api) as other:
        sent = {"traceparent": TRACEPARENT, "Baggage": "a=1"}
        with r.instance.span("agent:run") as span:
            # Another client knows nothing of this run.
            assert injected(other, **sent) == sent
            async with other.agent_instance(**AGENT) as run:
                assert injected(other) == step(run.id)
                assert injected(r.client) == step(r.instance.id, span.id)
        await r.instance.finish()
        assert injected(r.client, **sent) == sent


async def test_without_a_current_run_the_innermost_open_span_is_the_step() -> None:
    async with recording() as r:
        spans: list[str] = []

        def in_a_thread_of_its_own() -> dict[str, str]:
            with r.instance.span("agent:run") as span:
                spans.append(span.id)
                return injected(r.client)

        headers: list[dict[str, str]] = []
        thread = threading.Thread(target=lambda: headers.append(in_a_thread_of_its_own()))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert headers == [step(r.instance.id, spans[0])]


async def test_others_headers_are_kept() -> None:
    async with recording() as r:
        headers = injected(r.client, accept="*/*", baggage="userId=alice;p=1, x=%20")
        (run,) = step(r.instance.id)["baggage"].split(",")
        assert headers["baggage"] == f"userId=alice;p=1,x=%20,{run}"
        assert headers["accept"] == "*/*"
        # As in the headers of a request that this run passes on.
        again = dict(headers)
        with r.instance.span("agent:tool") as span:
            r.client.inject(again)
            assert again["baggage"] == f"{headers['baggage']},prefactor.span_id={span.id}"


async def test_headers_that_cannot_be_changed_are_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with recording() as r:
        for headers in (MappingProxyType({}), (), None, {"baggage": 7}):
            caplog.clear()
            r.client.inject(headers)  # type: ignore[arg-type]
            (record,) = caplog.records
            assert record.levelno == logging.WARNING


async def test_the_first_spans_of_a_run_name_the_step_that_caused_it() -> None:
    async with recording() as r:
        with r.instance.span("agent:run") as cause:
            headers = injected(r.client)
            async with r.client.agent_instance(**AGENT, parent=headers) as other:
                with other.span("agent:run", payload={"n": 1}):
                    with other.span("agent:llm", payload={"n": 2}):
                        pass
                with other.span("agent:tool") as tool:
                    await tool.start({"n": 3})
                other.span("agent:llm").cancel_nowait()
    first, second = r.runs
    named = {
        FIELD: {
            "run_id": first.id,
            "span_id": cause.id,
            "traceparent": headers["traceparent"],
        }
    }
    assert first.named("agent:run").payload == {}
    by_start = [(root.name, root.payload) for root in second.roots]
    assert sorted(by_start, key=lambda each: each[0]) == [
        ("agent:llm", named),
        ("agent:run", {"n": 1, **named}),
        ("agent:tool", {"n": 3, **named}),
    ]
    (child,) = next(root for root in second.roots if root.name == "agent:run").children
    assert child.payload == {"n": 2}


async def test_payloads_that_are_not_captured_or_filled_in_name_the_step_as_well() -> None:
    async with recording(capture_payloads=False) as r:
        async with r.client.agent_instance(**AGENT, parent=injected(r.client)) as other:
            with other.span("agent:run", payload={"secret": 1}):
                pass
        assert r.instance.id
    assert set(r.runs[1].named("agent:run").payload) == {FIELD}
    async with recording(schema_registry=standard_types()) as r:
        async with r.client.agent_instance(**AGENT, parent={"traceparent": TRACEPARENT}) as other:
            with other.span(LLMCall(model="small-1")) as span:
                span.set_result({"token_usage": {"total_tokens": 5}})  # type: ignore[arg-type]
    payload = r.runs[1].named("agent:llm_call").payload
    assert payload[FIELD] == {"traceparent": TRACEPARENT}
    assert (payload["model"], payload["token_usage"]) == ("small-1", {"total_tokens": 5})


async def test_a_process_that_dies_leaves_the_step_in_its_journal(tmp_path: Path) -> None:
    async with recording(journal=tmp_path) as r:
        async with r.client.agent_instance(**AGENT, parent={"traceparent": TRACEPARENT}) as other:
            with other.span("agent:run"):
                assert TRACEPARENT.encode() in everything_in(tmp_path)


async def test_a_run_passes_its_trace_on() -> None:
    unsampled = TRACEPARENT[:-2] + "00"
    async with recording() as r:
        async with r.client.agent_instance(**AGENT, parent={"traceparent": unsampled}) as second:
            with second.span("agent:run") as span:
                headers = injected(r.client)
            async with r.client.agent_instance(**AGENT, parent=headers) as third:
                last = injected(r.client)
    assert headers["traceparent"] == new_traceparent(unsampled[3:35], span_id_of(span.id), "00")
    assert last["traceparent"] == new_traceparent(unsampled[3:35], span_id_of(third.id), "00")
    assert f"prefactor.span_id={span.id}" in headers["baggage"]


async def test_malformed_headers_are_no_error_to_the_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "prefactor_core.operations"):
        async with recording() as r:
            for parent in ({"traceparent": "x", "baggage": "prefactor.run_id=x"}, 7, "text", [1]):
                caplog.clear()
                async with r.client.agent_instance(**AGENT, parent=parent) as other:
                    with other.span("agent:run"):
                        pass
                (record,) = caplog.records
                assert record.levelno == logging.INFO
            async with r.client.agent_instance(**AGENT, parent={"accept": "*/*"}):
                assert len(caplog.records) == 1
    assert [span.payload for run in r.runs for span in run.spans.values()] == [{}] * 4


async def test_a_run_that_is_not_registered_yet_names_no_ids_of_prefactor() -> None:
    async with open_faulty_api() as api:
        api.away = True
        config = make_config(registration_timeout=0.01)
        with anyio.fail_after(20):
            async with open_prefactor(config, asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    with instance.span("agent:run") as span:
                        headers = injected(client, baggage="prefactor.run_id=old")
                        assert list(headers) == ["traceparent"]
                        assert headers["traceparent"][36:52] == span_id_of(span.id)
                        api.away = False
                        await client.flush()
                        # The span's id in the trace is the same one.
                        assert headers["traceparent"][36:52] == span_id_of(span.id)
                        assert injected(client) == step(instance.id, span.id)


async def test_a_step_that_is_not_recorded_passes_on_what_caused_its_run() -> None:
    caused = {"traceparent": TRACEPARENT, "baggage": step(generate(1), generate(1))["baggage"]}
    async with open_faulty_api() as api:
        api.faults["register"] = 400
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT, parent=caused) as instance:
                assert not instance.recorded
                with instance.span("agent:run"):
                    assert injected(client) == caused
            async with client.agent_instance(**AGENT) as instance:
                assert injected(client) == {}
    async with open_prefactor(make_config(enabled=False)) as client:
        async with client.agent_instance(**AGENT, parent=caused) as instance:
            with instance.span("agent:run"):
                assert injected(client) == caused


async def test_the_span_that_a_full_buffer_drops_is_not_named() -> None:
    async with open_faulty_api() as api:
        config = make_config(queue={"max_pending_operations": 3})
        async with open_prefactor(config, asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.hanging = True
                with instance.span("agent:run") as outer:
                    await outer.start()
                    with instance.span("agent:tool") as inner:
                        await inner.start()
                        with instance.span("agent:llm") as dropped:
                            await dropped.start()
                            assert dropped.dropped
                            named = outer if inner.dropped else inner
                            named_id = None if named.dropped else named.id
                            assert injected(client) == step(instance.id, named_id)
                api.hanging = False


def test_the_synchronous_client_does_the_same() -> None:
    with open_recording() as recorded:
        with recorded.open_sync() as client, client.agent_instance(**AGENT) as instance:
            with instance.span("agent:run") as span:
                headers = injected(client)
                assert headers == step(instance.id, span.id)
                with client.agent_instance(**AGENT, parent=headers) as other:
                    with other.span("agent:tool"):
                        pass
        (payload,) = [root.payload for run in recorded.runs for root in run.roots if root.payload]
    ids = {"run_id": instance.id, "span_id": span.id}
    assert payload == {FIELD: {**ids, "traceparent": headers["traceparent"]}}
