"""Let Schemathesis make requests by our own OpenAPI document, and check the answers.

Any option of ``schemathesis run`` may follow, such as ``--seed``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import anyio

from prefactor_core.local.server import open_site, serve

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
]


async def main(*options: str) -> int:
    schemathesis = Path(sys.executable).with_name("schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_site(str(Path(folder) / "runs.db"), port=0) as site,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(serve, site)
            command = [str(schemathesis), "run", f"{site.url}api/v1/openapi"]
            command += ["--phases", "coverage,fuzzing,stateful", "--max-examples", "10"]
            command += ["--checks", ",".join(CHECKS), "--warnings", "off", "--continue-on-failure"]
            done = await anyio.run_process(
                [*command, *options], stdout=None, stderr=None, check=False, cwd=folder
            )
            tasks.cancel_scope.cancel()
    return done.returncode


if __name__ == "__main__":
    sys.exit(anyio.run(main, *sys.argv[1:]))
