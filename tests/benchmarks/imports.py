"""How long importing each system takes, beside a Python that does nothing; in turns."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.cells import Failure
from benchmarks.environments import (
    OFFICIAL_0_1_0,
    OFFICIAL_0_5_3,
    OPENTELEMETRY,
    OURS,
    Environment,
    last_line,
)

# No code ends by tearing the interpreter down: that is no import.
_END = "\nimport os; os._exit(0)"

_PREFACTOR = "import prefactor_core"

_OPENTELEMETRY = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
"""

_OPEN_OURS = """
import asyncio, prefactor_core
async def main():
    async with prefactor_core.open_prefactor(api_url={url!r}, api_token="token"): pass
asyncio.run(main())
"""

_OPEN_OFFICIAL = """
import asyncio, prefactor_core, prefactor_http.config
async def main():
    http = prefactor_http.config.HttpClientConfig(api_url={url!r}, api_token="token")
    config = prefactor_core.PrefactorCoreConfig(http_config=http)
    async with prefactor_core.PrefactorCoreClient(config): pass
asyncio.run(main())
"""

_OPEN_OPENTELEMETRY = """
exporter = OTLPSpanExporter(endpoint={url!r} + "/v1/traces")
TracerProvider().add_span_processor(BatchSpanProcessor(exporter))
"""


@dataclass(frozen=True)
class ImportFigures:
    """Seconds of each round beyond a bare Python, or why there are none.

    ``imported``: by importing. ``opened``: by importing and opening a client.
    ``given``: by importing what an agent has anyway (anyio and msgspec), for ours.
    """

    imported: list[float] | Failure
    opened: list[float] | Failure
    given: list[float] | Failure | None = None


def measure_imports(url: str, *, rounds: int) -> dict[str, ImportFigures]:
    """The figures of each environment, by its name. ``url``: where an API is."""
    snippets: list[tuple[Environment, Mapping[str, str]]] = [
        (
            OURS,
            {
                "bare": "",
                "imported": _PREFACTOR,
                "opened": _OPEN_OURS.format(url=url),
                "given": "import anyio, msgspec",
            },
        ),
        *(
            (
                official,
                {
                    "bare": "",
                    "imported": _PREFACTOR,
                    "opened": _OPEN_OFFICIAL.format(url=url),
                },
            )
            for official in (OFFICIAL_0_1_0, OFFICIAL_0_5_3)
        ),
        (
            OPENTELEMETRY,
            {
                "bare": "",
                "imported": _OPENTELEMETRY,
                "opened": _OPENTELEMETRY + _OPEN_OPENTELEMETRY.format(url=url),
            },
        ),
    ]
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    failures: dict[tuple[str, str], Failure] = {}
    # The first round is not counted: it reads the files and compiles.
    for number in range(rounds + 1):
        for environment, codes in snippets:
            for name, code in codes.items():
                key = environment.name, name
                began = time.perf_counter()
                try:
                    environment.run(["-I", "-c", code + _END], timeout=30)
                except subprocess.CalledProcessError as error:
                    failures[key] = Failure(last_line(error.stderr))
                except (OSError, subprocess.TimeoutExpired) as error:
                    failures[key] = Failure(str(error))
                if number:
                    taken[key].append(time.perf_counter() - began)

    def beyond_bare(environment: Environment, name: str) -> list[float] | Failure:
        bare, key = (environment.name, "bare"), (environment.name, name)
        if failure := failures.get(key) or failures.get(bare):
            return failure
        return [seconds - base for seconds, base in zip(taken[key], taken[bare], strict=True)]

    return {
        environment.name: ImportFigures(
            *(beyond_bare(environment, name) for name in codes if name != "bare")
        )
        for environment, codes in snippets
    }
