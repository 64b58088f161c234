"""The time that importing each system takes beyond a Python that does nothing; in turns."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from support.environments import Environment, last_line

from benchmarks.cells import Failure
from benchmarks.environments import (
    OFFICIAL_0_1_0,
    OFFICIAL_0_5_3,
    OPENTELEMETRY,
    OURS,
)

# The interpreter is not torn down: that is no import.
_END = """
import os, time
os.write(1, str(time.process_time()).encode())
os._exit(0)
"""

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
class Took:
    """Seconds beyond a bare Python, each the best of the rounds."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class ImportFigures:
    """The times of one system, or why there are none.

    ``imported``: by importing. ``opened``: by importing and opening a client.
    ``given``: for ours, by importing anyio and msgspec, which an agent has anyway.
    """

    imported: Took | Failure
    opened: Took | Failure
    given: Took | Failure | None = None


def measure_imports(url: str, *, rounds: int, official: bool) -> dict[str, ImportFigures]:
    """The figures of each environment, by its name. ``url``: of an API that answers.

    ``official``: whether to measure the official SDKs, which take long to import.
    """
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
                environment,
                {
                    "bare": "",
                    "imported": _PREFACTOR,
                    "opened": _OPEN_OFFICIAL.format(url=url),
                },
            )
            for environment in (OFFICIAL_0_1_0, OFFICIAL_0_5_3)
            if official
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
    taken: dict[tuple[str, str], list[Took]] = defaultdict(list)
    failures: dict[tuple[str, str], Failure] = {}
    # The first round is not counted: it reads the files from disk and compiles them.
    for number in range(rounds + 1):
        for environment, codes in snippets:
            for name, code in codes.items():
                key = environment.name, name
                began = time.perf_counter()
                try:
                    output = environment.run(["-I", "-c", code + _END], timeout=30)
                    if number:
                        wall = time.perf_counter() - began
                        taken[key].append(Took(float(last_line(output)), wall))
                except subprocess.CalledProcessError as error:
                    failures[key] = Failure(last_line(error.stderr))
                except (OSError, ValueError, subprocess.TimeoutExpired) as error:
                    failures[key] = Failure(str(error))

    def beyond_bare(environment: Environment, name: str) -> Took | Failure:
        key, bare = (environment.name, name), (environment.name, "bare")
        if failure := failures.get(key) or failures.get(bare):
            return failure
        return Took(
            min(one.cpu_s for one in taken[key]) - min(one.cpu_s for one in taken[bare]),
            min(one.wall_s for one in taken[key]) - min(one.wall_s for one in taken[bare]),
        )

    return {
        environment.name: ImportFigures(
            *(beyond_bare(environment, name) for name in codes if name != "bare")
        )
        for environment, codes in snippets
    }
