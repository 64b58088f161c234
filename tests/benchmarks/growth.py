"""This client under growing work: more spans, more runs, larger payloads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.cells import WITH, Failure, Figures, run_job
from benchmarks.drivers.job import Job
from benchmarks.serving import ServerProcess


@dataclass(frozen=True)
class Step:
    """One line of the table. ``time_limit``: seconds for recording."""

    title: str
    spans: int
    instances: int = 1
    payload_bytes: int = 400
    time_limit: float = 60.0

    def run(self, server: ServerProcess) -> Figures | Failure:
        """Run this step against an API that answers at once."""
        job = Job(
            api_port=server.api_port,
            control_port=server.control_port,
            load="growing",
            form=WITH.form,
            spans=self.spans,
            instances=self.instances,
            payload_bytes=self.payload_bytes,
            time_limit=self.time_limit,
        )
        return run_job(server, WITH, job, 0.0)


MILLION = Step("1,000,000 spans", 1_000_000, time_limit=240.0)


def steps(*, quick: bool) -> list[Step]:
    """The steps, in their order."""
    by_spans = [
        Step("1,000 spans", 1_000),
        Step("10,000 spans", 10_000),
        Step("100,000 spans", 100_000),
        MILLION,
    ]
    by_instances = [
        Step(f"{number:,} instances", 20_000, instances=number) for number in (1, 10, 100, 1_000)
    ]
    by_payload = [
        Step(f"payloads of {title}", spans, payload_bytes=size)
        for title, size, spans in (
            ("200 B", 200, 5_000),
            ("1 kB", 1_000, 5_000),
            ("10 kB", 10_000, 2_000),
            ("100 kB", 100_000, 500),
            ("1 MB", 1_000_000, 100),
        )
    ]
    if quick:
        few = (by_spans[0], by_instances[1], by_payload[3])
        return [replace(step, spans=min(step.spans, 1_000), time_limit=5.0) for step in few]
    return [*by_spans, *by_instances, *by_payload]
