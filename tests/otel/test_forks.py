"""PrefactorSpanProcessor in a fork of the process that opened the client."""

from __future__ import annotations

from pathlib import Path

from support.forks import needs_fork, run

SCRIPT = """
from opentelemetry.sdk.trace import TracerProvider
from prefactor_core.otel import PrefactorSpanProcessor


def chat(tracer):
    with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        pass


async def main():
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(PrefactorSpanProcessor(client, "tested-agent"))
            tracer = provider.get_tracer("tests")
            with tracer.start_as_current_span("work"):
                child = os.fork()
                if child == 0:
                    chat(tracer)
                    provider.force_flush()
                    provider.shutdown()
                    os._exit(0)
                assert wait_for(child) == 0
                chat(tracer)
        run = await stored_run(api)
        assert run.shape == (
            "complete", [("otel:span", "complete", [("agent:llm_call", "complete", [])])]
        ), run.shape


anyio.run(main)
"""


@needs_fork
def test_a_fork_records_nothing_of_its_parent_and_raises_nothing(tmp_path: Path) -> None:
    run(SCRIPT, tmp_path)
