"""What a client is configured with, checked when it is made.

The classes are plain mutable structs: an assignment after construction is not checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
)

from msgspec import Struct, field
from msgspec.structs import asdict, fields

from prefactor_core.config.http import LOCAL_PREFIX, HttpClientOptions
from prefactor_core.config.http import HttpClientConfig as HttpClientConfig
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import (
    to_at_least,
    to_count,
    to_positive,
    to_sdk_entry,
    to_seconds,
    to_signals,
    to_text,
    to_whole,
)
from prefactor_core.payloads.capture import Redact
from prefactor_core.payloads.credentials import redact_credentials
from prefactor_core.payloads.redaction import REDACT_SECRETS, redact_keys
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.schema_registry import SchemaRegistry

if TYPE_CHECKING:
    import signal
else:
    signal = LazyModule("signal")

_NOWHERE = f"{LOCAL_PREFIX}:memory:"

CheckMode: TypeAlias = Literal["off", "warn", "raise"]
"""What becomes of a payload that does not fit its schema."""

OnRefused: TypeAlias = Literal["log", "raise"]
"""What the scope of a run does if the API refuses to register the run."""

_NOTHING_CONFIGURED = (
    "nothing says which Prefactor to record to. Either set PREFACTOR_API_URL and "
    "PREFACTOR_API_TOKEN in the environment (or pass api_url= and api_token=), or pass "
    'api_url="local:PATH" to record into a database file without an account.'
)


class QueueConfig(Struct):
    """How what was recorded is delivered in the background.

    ``num_workers``: tasks that send at the same time, 1 to 20. The operations of one agent
    instance always go through one of them, in order.
    ``max_retries``: how often one operation that the API fails to take, while it is there
    for others, is tried again before it is given up; 0 or more. While the API itself is
    away, nothing is given up for as long as the scope lives.
    ``retry_delay_base``: seconds. A request that fails is sent again after a tenth of it; while
    all requests fail, all workers wait, after each failure ``retry_multiplier`` times as long as
    before. One operation that fails alone while others are taken waits that long itself.
    ``report_after``: seconds. A span that is still open so long after its entering is reported as
    active, its ancestors first, so that the running step shows; 0 reports it at its entering,
    ``math.inf`` at its end. A span whose payload is filled in from its result, such as
    :class:`~prefactor_core.span_types.LLMCall`, waits for its end unless it was started.
    ``batch_window``: how long an operation waits for others to share its request, in
    seconds; 0 or more.
    ``max_batch_operations``, ``max_batch_bytes``: how much goes into one request, at least
    one operation. The bytes are those of payloads, and an estimate for the rest.
    ``max_pending_operations``, ``max_pending_bytes``: how much may wait to be delivered. By
    default there is room for a burst of more than 50,000 ordinary spans. The bytes include the
    payloads of open spans: where these take the room, a marker stands for any further payload,
    and the span itself is recorded.
    ``when_full``: what becomes of a new span then. ``"drop"``: it is not recorded, but
    counted, and its children become those of its parent. ``"wait"``: ``async with`` and
    ``create_span`` wait for room, and nothing is lost; synchronous code, which cannot wait,
    drops. Whatever belongs to what was taken before is always taken.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    num_workers: int = 3
    max_retries: int = 3
    retry_delay_base: float = 1.0
    report_after: float = 1.0
    batch_window: float = 0.1
    max_batch_operations: int = 500
    # Below the 1 MiB that many a proxy takes.
    max_batch_bytes: int = 1_000_000
    max_pending_operations: int = 200_000
    max_pending_bytes: int = 128 * 1024 * 1024
    when_full: Literal["drop", "wait"] = "drop"

    def __post_init__(self) -> None:
        self.num_workers = to_whole("num_workers", self.num_workers)
        if not 1 <= self.num_workers <= 20:
            raise PrefactorValueError(
                f"num_workers must be between 1 and 20, got {in_message(self.num_workers)}"
            )
        self.max_retries = to_count("max_retries", self.max_retries)
        self.retry_delay_base = to_positive("retry_delay_base", self.retry_delay_base)
        self.report_after = to_seconds("report_after", self.report_after)
        self.batch_window = to_seconds("batch_window", self.batch_window)
        if self.batch_window == math.inf:
            raise PrefactorValueError(
                f"batch_window must have an end, got {in_message(self.batch_window)}"
            )
        for name in (
            "max_batch_operations",
            "max_batch_bytes",
            "max_pending_operations",
            "max_pending_bytes",
        ):
            setattr(self, name, to_at_least(name, getattr(self, name), 1))
        if self.when_full not in ("drop", "wait"):
            raise PrefactorValueError(
                f"when_full must be 'drop' or 'wait', got {in_message(self.when_full)}"
            )


class PrefactorOptions(TypedDict, total=False):
    """The fields of :class:`PrefactorCoreConfig` that ``open_prefactor`` takes by name."""

    enabled: bool | None
    queue_config: QueueConfig | Mapping[str, object]
    sdk_header_entry: str | None
    validate_token: bool
    registration_timeout: float
    on_refused: OnRefused
    drain_timeout: float
    termination_poll_interval: float
    cancel_on_signals: Sequence[signal.Signals]
    raise_on_loss: bool
    check_payloads: CheckMode
    capture_payloads: bool
    max_payload_bytes: int
    redact: Redact | None


def check_options(options: Mapping[str, object]) -> None:
    """Raises :class:`PrefactorValueError` for what is no field of :class:`PrefactorOptions`."""
    for name in options.keys() - PrefactorOptions.__annotations__.keys():
        known = ", ".join(PrefactorOptions.__annotations__)
        if name == "http_config":
            known = "api_url and api_token; or make a PrefactorCoreConfig"
        elif name in {option.name for option in fields(QueueConfig)}:
            known = f"queue_config=QueueConfig({name}=...)"
        raise PrefactorValueError(f"there is no option {in_message(name)} here: use {known}")


class PrefactorCoreConfig(Struct, kw_only=True):
    """What a :class:`~prefactor_core.PrefactorCoreClient` works with. Times in seconds.

    ``http_config``: an :class:`HttpClientConfig`, a mapping of its fields, or any object
    with the same attributes (the official package's dataclass). Only with ``enabled=False`` it
    may be left out.
    ``queue_config``: a :class:`QueueConfig` or a mapping of its fields.
    ``schema_registry``: span types to register with every agent instance.
    ``enabled``: False switches everything off: all calls work as ever, and nothing is recorded
    or sent. By default ``PREFACTOR_ENABLED`` in the environment says it (0 or 1), else True.
    ``sdk_header_entry``: the package that records by this one, ``package@version``, or several
    divided by a blank; the API gets to know it with every request and every run.
    ``validate_token``: whether opening the client asks the API if it takes the token. A wrong
    one is a :class:`~prefactor_core.PrefactorAuthError` then; an API that is away, or does not
    answer within ``registration_timeout``, or a gateway's 401 or 403, is no reason not to open.
    ``registration_timeout``: how long ``create_agent_instance`` waits for a run to be registered,
    and opening for a local file that others have locked while it has to be made.
    ``on_refused``: what becomes of a run whose registration the API refuses (a wrong token, an
    unknown agent, an ``external_identifier`` that is taken). ``"log"``: one ERROR in the log, and
    the run goes on unrecorded: ``instance.recorded`` is False, and what is recorded in it counts
    as dropped, ``refused``. ``"raise"``: entering ``agent_instance()`` raises the
    :class:`~prefactor_core.PrefactorApiError`, as ``create_agent_instance()`` always does.
    ``drain_timeout``: how long leaving the scope waits until everything is delivered.
    ``termination_poll_interval``: how often the API is asked whether it has terminated a run;
    ``math.inf`` leaves it at what the answers to spans say.
    ``cancel_on_signals``: signals, ``(signal.SIGTERM,)`` say, that cancel the client's block; it
    is left quietly then, after the drain, and ``client.stopped_by`` tells which it was. Main
    thread only. By default the program's signals are its own.
    ``raise_on_loss``: whether a scope in which something was lost ends with a
    :class:`~prefactor_core.PrefactorTelemetryFailureError`, if its body did not raise.
    ``check_payloads``: for development: ``"warn"`` logs, once each, what in payloads and in results
    of complete spans does not fit the schemas of their run, and span types that are not in there;
    ``"raise"`` makes a :class:`PrefactorValueError` of it. Needs the extra ``check``.
    ``capture_payloads``: False records what happened and when, but no payloads and results, and
    no quality payloads; of an error only its type.
    ``max_payload_bytes``: how large the JSON of one payload or result may be, at least 1,024
    bytes; the largest texts in it are cut to what fits, and say so.
    ``redact``: a function that gets every payload and result, as decoded JSON, and gives what
    is recorded of it; :func:`~prefactor_core.redact_keys` and
    :func:`~prefactor_core.redact_credentials` make some. By default it is that of
    ``redact_keys()``, which hides what stands under the usual names of secrets; with None, all
    is recorded as it is.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    # None stands for "not given": where everything is switched off, nothing has to be.
    http_config: HttpClientConfig = cast("HttpClientConfig", None)
    queue_config: QueueConfig = field(default_factory=QueueConfig)
    schema_registry: SchemaRegistry | None = None
    enabled: bool | None = None
    sdk_header_entry: str | None = None
    validate_token: bool = False
    registration_timeout: float = 10.0
    on_refused: OnRefused = "log"
    drain_timeout: float = 10.0
    termination_poll_interval: float = 30.0
    cancel_on_signals: Sequence[signal.Signals] = ()
    raise_on_loss: bool = False
    check_payloads: CheckMode = "off"
    capture_payloads: bool = True
    max_payload_bytes: int = 500_000
    redact: Redact | None = REDACT_SECRETS

    if TYPE_CHECKING:
        # What is taken is wider than what is kept, which a struct's fields can't say.
        def __init__(
            self,
            *,
            http_config: HttpClientConfig | HttpClientOptions | Mapping[str, object] = ...,
            queue_config: QueueConfig | Mapping[str, object] = ...,
            schema_registry: SchemaRegistry | None = None,
            enabled: bool | None = None,
            sdk_header_entry: str | None = None,
            validate_token: bool = False,
            registration_timeout: float = 10.0,
            on_refused: OnRefused = "log",
            drain_timeout: float = 10.0,
            termination_poll_interval: float = 30.0,
            cancel_on_signals: Sequence[signal.Signals] = (),
            raise_on_loss: bool = False,
            check_payloads: CheckMode = "off",
            capture_payloads: bool = True,
            max_payload_bytes: int = 500_000,
            redact: Redact | None = REDACT_SECRETS,
        ) -> None: ...

    def __post_init__(self) -> None:
        if self.enabled is None:
            self.enabled = _enabled_by_environment()
        if cast("object", self.http_config) is None and self.enabled is False:
            self.http_config = HttpClientConfig(api_url=_NOWHERE)
        self.http_config = _struct("http_config", self.http_config, HttpClientConfig)
        self.queue_config = _struct("queue_config", self.queue_config, QueueConfig)
        if self.schema_registry is not None and not isinstance(
            self.schema_registry, SchemaRegistry
        ):
            raise PrefactorValueError(
                "schema_registry must be a SchemaRegistry, got "
                f"{type(self.schema_registry).__qualname__}"
            )
        if self.sdk_header_entry is not None:
            self.sdk_header_entry = to_sdk_entry("sdk_header_entry", self.sdk_header_entry)
        self.registration_timeout = to_positive("registration_timeout", self.registration_timeout)
        self.drain_timeout = to_seconds("drain_timeout", self.drain_timeout)
        self.termination_poll_interval = to_positive(
            "termination_poll_interval", self.termination_poll_interval
        )
        self.cancel_on_signals = to_signals("cancel_on_signals", self.cancel_on_signals)
        for name in ("enabled", "validate_token", "raise_on_loss", "capture_payloads"):
            if not isinstance(getattr(self, name), bool):
                raise PrefactorValueError(
                    f"{name} must be True or False, got {in_message(getattr(self, name))}"
                )
        if self.check_payloads not in get_args(CheckMode):
            raise PrefactorValueError(
                "check_payloads must be 'off', 'warn' or 'raise', got "
                f"{in_message(self.check_payloads)}"
            )
        if self.on_refused not in get_args(OnRefused):
            raise PrefactorValueError(
                f"on_refused must be 'log' or 'raise', got {in_message(self.on_refused)}"
            )
        self.max_payload_bytes = to_at_least("max_payload_bytes", self.max_payload_bytes, 1024)
        if self.redact is not None and not callable(self.redact):
            raise PrefactorValueError(f"redact must be a function, got {in_message(self.redact)}")
        for factory in (redact_keys, redact_credentials):
            if cast("object", self.redact) is factory:
                name = factory.__name__
                raise PrefactorValueError(f"redact must be what {name}() gives: call it")

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # What http_config is made of has the token, and no repr that hides it.
        shown = asdict(self)
        if not isinstance(shown["http_config"], HttpClientConfig):
            shown["http_config"] = in_message(self.http_config)
        return list(shown.items())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def replace(self, **changes: object) -> Self:
        """The same with other fields, checked as ever.

        Raises :class:`PrefactorValueError` for a value out of its bounds.
        """
        # Not msgspec's own replace(): before 0.19 that checks nothing.
        values: dict[str, Any] = {**asdict(self), **changes}
        return type(self)(**values)

    @classmethod
    def from_env(
        cls,
        *,
        api_url: str | None = None,
        api_token: str | None = None,
        schema_registry: SchemaRegistry | None = None,
        **options: Unpack[PrefactorOptions],
    ) -> Self:
        """The configuration that ``PREFACTOR_API_URL`` and ``PREFACTOR_API_TOKEN`` give.

        An argument goes before its variable. The token of the environment is not used
        with a ``local:`` URL. Raises :class:`PrefactorValueError` if there is no URL, or no
        token where one is needed.
        """
        # No traceback with locals shows it.
        api_token = SecretStr(api_token) if isinstance(api_token, str) else api_token
        enabled = options.get("enabled")
        if enabled is False or (enabled is None and not _enabled_by_environment()):
            # Nothing is sent, so nothing has to say where to.
            options["enabled"] = False
            api_url, api_token = _NOWHERE, None
        url = to_text("api_url", api_url or "") or os.environ.get("PREFACTOR_API_URL", "").strip()
        if not url:
            raise PrefactorValueError(_NOTHING_CONFIGURED)
        if not api_token and not url.startswith(LOCAL_PREFIX):
            api_token = SecretStr(os.environ.get("PREFACTOR_API_TOKEN", ""))
        return cls(
            http_config=HttpClientConfig(api_url=url, api_token=api_token or ""),
            schema_registry=schema_registry,
            **options,
        )


def _enabled_by_environment() -> bool:
    text = os.environ.get("PREFACTOR_ENABLED", "").strip()
    if text not in ("", "0", "1"):
        raise PrefactorValueError(
            f"PREFACTOR_ENABLED in the environment must be 0 or 1, got {in_message(text)}"
        )
    return text != "0"


_Config = TypeVar("_Config", HttpClientConfig, QueueConfig)


def _struct(name: str, value: object, cls: type[_Config]) -> _Config:
    """``value`` as ``cls``: itself, a mapping of its fields, or an object that has them."""
    if isinstance(value, cls):
        return value
    kind = type(value).__qualname__
    names = [f.name for f in fields(cls)]
    given: dict[str, Any]
    if is_mapping := isinstance(value, Mapping):
        given = {str(key): item for key, item in cast("Mapping[object, object]", value).items()}
    else:
        given = {n: getattr(value, n) for n in names if hasattr(value, n)}
    # From here on no traceback with locals shows the token.
    del value
    if isinstance(given.get("api_token"), str):
        given["api_token"] = SecretStr(given["api_token"])
    unknown = sorted(given.keys() - set(names))
    if unknown:
        raise PrefactorValueError(
            f"{name} has no field {in_message(unknown[0])}; its fields are {', '.join(names)}"
        )
    if cls is HttpClientConfig and "api_url" not in given:
        raise PrefactorValueError(
            f"{name} must be an HttpClientConfig, a mapping of its fields or an object with "
            f"the same attributes, got {kind} without api_url"
        )
    if not given and not is_mapping:
        raise PrefactorValueError(
            f"{name} must be a {cls.__name__} or a mapping of its fields, got {kind}"
        )
    return cls(**given)
