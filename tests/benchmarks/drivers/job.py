"""The job of a driver, and its report; standard library only.

The runner starts a driver with the Python of its system's environment and a :class:`Job` as
JSON in the one argument. The driver writes a :class:`Report` as the last line of its output.
"""

from __future__ import annotations

import http.client
import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one system.

    ``load``: a name of :mod:`loads`; ``growing``, for our client; or ``cost`` (:mod:`cost`).
    ``form``: how the system is used, if there are several ways.
    ``spans``: so many are recorded; ``warm_up``: so many before, by a client of their own.
    ``payload_bytes``: the size of a payload and of a result, as JSON.
    ``tasks``: how many record at once. ``rate``: spans per second of the paced load.
    ``instances``: how many runs the spans are divided among.
    ``down``: the API goes away once the run is registered; its port refuses connections.
    ``queue_size``: spans that OpenTelemetry's queue holds; None for its default.
    ``drain_timeout``: seconds that leaving our client may take, or that OpenTelemetry's exporter
    tries to send a batch; None for their defaults.
    ``time_limit``: seconds after which no more spans are recorded.
    """

    api_port: int
    control_port: int
    load: str
    form: str = ""
    spans: int
    warm_up: int = 0
    payload_bytes: int = 400
    tasks: int = 50
    rate: float = 200.0
    instances: int = 1
    down: bool = False
    queue_size: int | None = None
    drain_timeout: float | None = None
    time_limit: float = 60.0

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"


@dataclass
class Report:
    """The measurements of a driver, from the first span to the end of closing.

    ``agent_median_us``, ``agent_p99_us``: microseconds of the agent for one span.
    ``wall_s``, ``cpu_s``: seconds, the latter of the whole process. ``peak_mb``: the largest
    resident memory of the process. ``recorded``: spans. ``raised``: spans at which the system
    raised into the agent, with the first of these errors.
    ``early_mb``, ``late_mb``: resident memory after 10,000 spans and after the last, when all
    of them are delivered.
    """

    agent_median_us: float
    agent_p99_us: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    recorded: int
    raised: int = 0
    error: str | None = None
    early_mb: float | None = None
    late_mb: float | None = None


@dataclass(frozen=True)
class Cost:
    """The agent's cost of one span, on average over a round.

    ``cpu_us``: microseconds of CPU time of the whole process; ``wall_us``: of wall time.
    ``calls``: Python and builtin calls; ``files``: files of the system that these are in. None
    for a form that gives the loop turns.
    """

    cpu_us: float
    wall_us: float
    calls: float | None
    files: int | None


@dataclass
class Bodies:
    """The payload and the result of every span, of ``size`` bytes each as JSON.

    ``flat_payload``, ``flat_result``: the same as attributes that hold primitive values.
    """

    size: int
    payload: dict[str, Any] = field(init=False)
    result: dict[str, Any] = field(init=False)
    flat_payload: dict[str, Any] = field(init=False)
    flat_result: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        metadata = {"user": "u-123", "session": "s-456", "attempt": 1}
        self.payload = {
            "model": "gpt-4",
            "temperature": 0.2,
            "max_tokens": 1024,
            "prompt": "",
            "metadata": metadata,
        }
        self.payload["prompt"] = _filling(self.size - len(json.dumps(self.payload)))
        self.result = {"response": "", "tokens": 150, "finish_reason": "stop"}
        self.result["response"] = _filling(self.size - len(json.dumps(self.result)))
        self.flat_payload = _flat(self.payload)
        self.flat_result = _flat(self.result)


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat


def _filling(size: int) -> str:
    words = "Which of the two mountains is higher, and how do we know? "
    return (words * (size // len(words) + 1))[: max(size, 0)]


def read_job() -> Job:
    """The job that this driver was started with."""
    return Job(**json.loads(sys.argv[1]))


def write_report(report: Report) -> None:
    """Write the report for the runner."""
    sys.stdout.write(json.dumps(asdict(report)) + "\n")


def control(port: int, **settings: object) -> dict[str, int]:
    """Change the server's settings (``server.Settings``); return its counts before the change."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/control", json.dumps(settings))
        counts: dict[str, int] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return counts


def begin(job: Job) -> None:
    """The warm-up is over and the run registered: the server counts from here."""
    if job.down:
        control(job.control_port, reset=True, listening=False)
    else:
        control(job.control_port, reset=True)
