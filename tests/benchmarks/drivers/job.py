"""What a driver is told to do, and what it reports; standard library only.

The runner starts a driver with the Python of its system's environment and a :class:`Job` as
JSON in the one argument. The driver writes a :class:`Report` as the last line of its output.
"""

from __future__ import annotations

import http.client
import json
import sys
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one system.

    ``load``: a name of :mod:`loads`. ``form``: how the system is used, if there are several.
    ``spans``: so many are recorded; ``warm_up``: so many before, by a client of their own.
    ``payload_bytes``: the size of a payload and of a result, as JSON.
    ``tasks``: how many record at once. ``rate``: spans per second of the paced load.
    ``instances``: how many runs the spans are divided among.
    ``down``: the API goes away once the run is registered; its port refuses connections.
    ``queue_size``: spans that OpenTelemetry's queue holds; None for its default.
    ``drain_timeout``: seconds that leaving our client may take; None for its default.
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
    """What a driver measured, from the first span to the end of closing.

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


@dataclass
class Bodies:
    """The payload and the result of every span, of ``size`` bytes each as JSON."""

    size: int
    payload: dict[str, object] = field(init=False)
    result: dict[str, object] = field(init=False)

    def __post_init__(self) -> None:
        message = {"role": "user", "content": ""}
        self.payload = {"model": "gpt-4", "temperature": 0.2, "messages": [message]}
        message["content"] = _filling(self.size - len(json.dumps(self.payload)))
        self.result = {"response": "", "finish_reason": "stop", "usage": {"output_tokens": 87}}
        self.result["response"] = _filling(self.size - len(json.dumps(self.result)))


def _filling(size: int) -> str:
    words = "Which of the two mountains is higher, and how do we know? "
    return (words * (size // len(words) + 1))[: max(size, 0)]


def read_job() -> Job:
    """The job that this driver was started with."""
    return Job(**json.loads(sys.argv[1]))


def write_report(report: Report) -> None:
    """Tell the runner."""
    sys.stdout.write(json.dumps(asdict(report)) + "\n")


def control(port: int, **settings: object) -> dict[str, int]:
    """Change the server's settings (``server.Settings``); its counts of until then."""
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
