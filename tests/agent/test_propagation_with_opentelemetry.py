"""``inject()`` where a span of OpenTelemetry is current: both traces go on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from support.harness import AGENT, recording

from prefactor_core.operations.cause import FIELD

SPAN = SpanContext(
    0x0AF7651916CD43DD8448EB211C80319C,
    0xB7AD6B7169203331,
    is_remote=False,
    trace_flags=TraceFlags(1),
    trace_state=TraceState([("vendor", "1")]),
)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def current(span_context: SpanContext) -> Generator[None]:
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(span_context)))
    try:
        yield
    finally:
        context.detach(token)


async def test_opentelemetry_writes_its_own_context_and_prefactor_its_ids() -> None:
    async with recording() as r:
        with r.instance.span("agent:tool") as span, current(SPAN):
            token = context.attach(baggage.set_baggage("userId", "alice"))
            headers: dict[str, str] = {}
            r.client.inject(headers)
            context.detach(token)
            ids = f"prefactor.run_id={r.instance.id},prefactor.span_id={span.id}"
            assert headers == {
                "traceparent": TRACEPARENT,
                "tracestate": "vendor=1",
                "baggage": f"userId=alice,{ids}",
            }
            # A service between, which only knows OpenTelemetry, passes all of it on.
            between: dict[str, str] = {}
            propagate.inject(between, propagate.extract(headers))
            assert between == headers
            async with r.client.agent_instance(**AGENT, parent=between) as other:
                with other.span("agent:run"):
                    pass
    assert r.runs[1].named("agent:run").payload[FIELD] == {
        "run_id": r.instance.id,
        "span_id": span.id,
        "traceparent": TRACEPARENT,
    }


async def test_without_a_current_span_of_opentelemetry_the_ids_are_those_of_the_export() -> None:
    async with recording() as r:
        expected: dict[str, str] = {}
        r.client.inject(expected)
        with current(trace.INVALID_SPAN_CONTEXT):
            headers: dict[str, str] = {}
            r.client.inject(headers)
        assert headers == expected != {}


async def test_a_propagator_that_fails_is_no_error() -> None:
    class Failing:
        fields: frozenset[str] = frozenset()

        def extract(self, *_: object) -> None: ...
        def inject(self, *_: object, **__: object) -> None:
            raise RuntimeError("no")

    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Failing())  # type: ignore[arg-type]
    try:
        async with recording() as r:
            with current(SPAN):
                headers: dict[str, str] = {}
                r.client.inject(headers)
            assert list(headers) == ["traceparent", "baggage"]
            assert headers["traceparent"] != TRACEPARENT
    finally:
        propagate.set_global_textmap(before)


def test_a_program_without_opentelemetry_does_not_import_it() -> None:
    program = """
import sys
from prefactor_core import open_prefactor_sync
from prefactor_core.span_types import standard_types
with open_prefactor_sync(api_url="local::memory:", schema_registry=standard_types()) as client:
    with client.agent_instance("a", {"name": "A"}):
        client.inject(headers := {})
assert headers, headers
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
