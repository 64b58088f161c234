"""The configuration of a client, checked at construction.

The classes are plain mutable structs: an assignment after construction is not checked.
"""

from __future__ import annotations

import os
import re
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
from prefactor_core.config.queue import QueueConfig as QueueConfig
from prefactor_core.config.redis import is_redis
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import (
    check_choice,
    check_flag,
    nearest,
    nearest_hint,
    to_at_least,
    to_folder,
    to_positive,
    to_sdk_entry,
    to_seconds,
    to_signals,
    to_text,
)
from prefactor_core.payloads.credentials import redact_credentials
from prefactor_core.payloads.redaction import REDACT_SECRETS, Redact, redact_keys
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.schema_registry import SchemaRegistry

if TYPE_CHECKING:
    import signal
else:
    signal = LazyModule("signal")

_NOWHERE = f"{LOCAL_PREFIX}:memory:"

_LEAST_JOURNAL_BYTES = 1_000_000

CheckMode: TypeAlias = Literal["off", "warn", "raise"]
"""The reaction to a payload that does not fit its schema."""

OnRefused: TypeAlias = Literal["log", "raise"]
"""The reaction of a run's scope if the API refuses to register the run."""

JournalSync: TypeAlias = Literal["process", "disk"]
"""What the journal survives: the death of the process, or also that of the machine."""

_NOTHING_CONFIGURED = (
    "nothing says which Prefactor to record to. Either set PREFACTOR_API_URL and "
    "PREFACTOR_API_TOKEN in the environment (or pass api_url= and api_token=), or pass "
    'api_url="local:PATH" to record into a database file without an account.'
)


class PrefactorOptions(TypedDict, total=False):
    """The fields of :class:`PrefactorCoreConfig` that ``open_prefactor`` takes by name: all but
    ``http_config``."""

    schema_registry: SchemaRegistry | None
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
    journal: str | os.PathLike[str] | None
    journal_sync: JournalSync
    journal_max_bytes: int


def check_options(options: Mapping[str, object], *others: str) -> None:
    """Raise :class:`PrefactorValueError` for a name that is no field of ``PrefactorOptions``.

    ``others``: the other options of the caller, for the message.
    """
    names = (*others, *PrefactorOptions.__annotations__)
    of_queue = [option.name for option in fields(QueueConfig)]
    for name in options.keys() - PrefactorOptions.__annotations__.keys():
        hint, use = nearest_hint(name, names), ", ".join(names)
        if name == "http_config":
            hint, use = "", "api_url and api_token; or make a PrefactorCoreConfig"
        elif (near := nearest(name, (*names, *of_queue))) in of_queue:
            hint, use = "", f"queue_config=QueueConfig({near}=...)"
        raise PrefactorValueError(f"there is no option {in_message(name)} here{hint}: use {use}")


class PrefactorCoreConfig(Struct, kw_only=True):
    """The configuration of a :class:`~prefactor_core.PrefactorCoreClient`. Times in seconds.

    ``http_config``: an :class:`HttpClientConfig`, a mapping of its fields, or any object
    with the same attributes (the official package's dataclass). It may be left out only with
    ``enabled=False``.
    ``queue_config``: a :class:`QueueConfig` or a mapping of its fields.
    ``schema_registry``: span types to register with every agent instance. None, the default, stands
    for the standard types, :func:`prefactor_core.span_types.standard_types`.
    ``enabled``: False switches everything off: all calls work as usual, nothing is recorded, sent
    or opened, a span costs less than a microsecond, and ``async with`` gives no turn to other
    tasks. The default is ``PREFACTOR_ENABLED`` in the environment (0 or 1), else True.
    ``sdk_header_entry``: the package that builds on this one, ``package@version``, or several
    divided by a blank; the API receives it with every request and every run.
    ``validate_token``: whether opening the client asks the API if it accepts the token. A wrong
    token raises :class:`~prefactor_core.PrefactorAuthError` then; the client opens all the same
    if the API cannot be reached, does not answer within ``registration_timeout``, or a gateway
    answers 401 or 403. Of a Redis server the password is checked, in the same way.
    ``registration_timeout``: how long ``create_agent_instance`` waits for the registration of a
    run, and opening for a new local file that other processes have locked.
    ``on_refused``: the treatment of a run whose registration the API refuses (a wrong token, an
    unknown agent, an ``external_identifier`` that is taken). ``"log"``: one ERROR in the log, and
    the run goes on unrecorded: ``instance.recorded`` is False, and its operations count as dropped,
    ``refused``. A gateway's HTML page is an outage, not a refusal. ``"raise"``: entering
    ``agent_instance()`` raises the :class:`~prefactor_core.PrefactorApiError`, as
    ``create_agent_instance()`` always does.
    ``drain_timeout``: how long leaving the scope waits until everything is delivered.
    ``termination_poll_interval``: how often the API is asked whether it has terminated a run;
    with ``math.inf`` only the answers to spans tell it. A Redis server is asked each half second,
    or with ``math.inf`` never.
    ``cancel_on_signals``: signals, for instance ``(signal.SIGTERM,)``, that cancel the client's
    block; the block is left quietly then, after the drain, and ``client.stopped_by`` is the
    signal. Main thread only. By default no signal does.
    ``raise_on_loss``: whether a scope that lost something ends with a
    :class:`~prefactor_core.PrefactorTelemetryFailureError`, if its body did not raise.
    ``check_payloads``: for development. ``"warn"`` logs, once each, the problems of payloads and of
    results of complete spans by the schemas of their run, unregistered span types, fields that
    look misspelled, and results of another type; ``"raise"`` raises :class:`PrefactorValueError`
    for them. Needs the extra ``check``.
    ``capture_payloads``: False records spans and times, but no payloads, results and quality
    payloads; of an error only its type.
    ``max_payload_bytes``: the limit for the JSON of one payload or result, at least 1,024 bytes;
    in a larger one the largest strings are cut, with a note of the missing characters. If it is
    large by many small values, ``{"$truncated": {"bytes": …}}`` replaces the largest lists and
    objects in it, and the whole payload only if none of them is large. Short values beside stay.
    ``redact``: a function that takes every payload and result, as decoded JSON, and returns the
    part that is recorded; :func:`~prefactor_core.redact_keys` and
    :func:`~prefactor_core.redact_credentials` make such functions. The default is that of
    ``redact_keys()``, which hides the values under the usual names of secrets; None records
    everything as it is.
    ``journal``: a folder for a journal of what is recorded, so that nothing is lost when the
    process dies or the API is away for long: the next client with the same folder delivers what is
    left there, and ends what was left open. The default is ``PREFACTOR_JOURNAL`` in the
    environment, else no journal; ``""`` is none in any case. The path is made absolute at once,
    and ``~`` is the user's home. The folder is made, for its owner
    alone; any number of processes may share it.
    ``journal_sync``: ``"process"`` writes to the operating system, which survives the death of the
    process; ``"disk"`` has a thread bring it to the disk within some 20 ms, which survives the
    death of the machine, and :meth:`~prefactor_core.PrefactorCoreClient.flush` waits for that.
    ``journal_max_bytes``: the limit for the files of this client's journal, at least 1,000,000
    bytes; at the limit new spans are treated as ``when_full`` says, and one that is only open when
    the process dies leaves no trace.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    # None stands for "not given", which is allowed only with enabled=False.
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
    journal: str | os.PathLike[str] | None = None
    journal_sync: JournalSync = "process"
    journal_max_bytes: int = 256 * 1024 * 1024

    if TYPE_CHECKING:
        # The accepted types are wider than those of the fields, which a struct cannot declare.
        def __init__(
            self,
            *,
            http_config: HttpClientConfig | HttpClientOptions | Mapping[str, object] = ...,
            **options: Unpack[PrefactorOptions],
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
            check_flag(name, getattr(self, name))
        check_choice("check_payloads", self.check_payloads, get_args(CheckMode))
        check_choice("on_refused", self.on_refused, get_args(OnRefused))
        self.max_payload_bytes = to_at_least("max_payload_bytes", self.max_payload_bytes, 1024)
        if self.redact is not None and not callable(self.redact):
            raise PrefactorValueError(f"redact must be a function, got {in_message(self.redact)}")
        if self.journal is None:
            text = os.environ.get("PREFACTOR_JOURNAL", "").strip()
            self.journal = to_folder("PREFACTOR_JOURNAL in the environment", text)
        else:
            self.journal = to_folder("journal", self.journal)
        check_choice("journal_sync", self.journal_sync, get_args(JournalSync))
        self.journal_max_bytes = to_at_least(
            "journal_max_bytes", self.journal_max_bytes, _LEAST_JOURNAL_BYTES
        )
        for factory in (redact_keys, redact_credentials):
            if cast("object", self.redact) is factory:
                name = factory.__name__
                raise PrefactorValueError(f"redact must be what {name}() gives: call it")

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # Not the object that http_config was made from: its repr may show the token.
        shown = asdict(self)
        if not isinstance(shown["http_config"], HttpClientConfig):
            shown["http_config"] = in_message(self.http_config)
        return list(shown.items())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def replace(self, **changes: object) -> Self:
        """Return a copy with other fields, checked like any configuration.

        Raises :class:`PrefactorValueError` for a value out of its bounds, and for an unknown field.
        """
        others = {name: value for name, value in changes.items() if name != "http_config"}
        check_options(others, "http_config")
        # Not msgspec's own replace(): before 0.19 it checks nothing.
        values: dict[str, Any] = {**asdict(self), **changes}
        return type(self)(**values)

    @classmethod
    def from_env(
        cls,
        *,
        api_url: str | None = None,
        api_token: str | None = None,
        **options: Unpack[PrefactorOptions],
    ) -> Self:
        """Return the configuration of ``PREFACTOR_API_URL`` and ``PREFACTOR_API_TOKEN``.

        An argument overrides its variable. The address of a local file or of a Redis
        server ignores the token of the environment.
        Raises :class:`PrefactorValueError` if there is no URL, or no token for another machine.
        """
        check_options(options, "api_url", "api_token")
        # A SecretStr, so that no traceback with locals shows it.
        api_token = SecretStr(api_token) if isinstance(api_token, str) else api_token
        enabled = options.get("enabled")
        if enabled is False or (enabled is None and not _enabled_by_environment()):
            # Nothing is sent, so no address is needed.
            options["enabled"] = False
            api_url, api_token = _NOWHERE, None
        variables: dict[str, str] = {}  # those that are read, by the names of their fields
        url = to_text("api_url", api_url or "")
        if not url:
            url = os.environ.get("PREFACTOR_API_URL", "").strip()
            variables["api_url"] = "PREFACTOR_API_URL"
        if not url:
            raise PrefactorValueError(_NOTHING_CONFIGURED)
        if "@" in url:
            url = SecretStr(url)  # it may hold the password of a Redis server
        if not api_token and not url.startswith(LOCAL_PREFIX) and not is_redis(url):
            api_token = SecretStr(os.environ.get("PREFACTOR_API_TOKEN", ""))
            if api_token:
                variables["api_token"] = "PREFACTOR_API_TOKEN"
        try:
            http_config = HttpClientConfig(api_url=url, api_token=api_token or "")
        except PrefactorValueError as error:
            message = str(error)
        else:
            return cls(http_config=http_config, **options)
        for field_name, variable in variables.items():
            message = re.sub(rf"\b{field_name}\b(?!=)", variable, message)
        raise PrefactorValueError(message)


def _enabled_by_environment() -> bool:
    text = os.environ.get("PREFACTOR_ENABLED", "").strip()
    if text not in ("", "0", "1"):
        raise PrefactorValueError(
            f"PREFACTOR_ENABLED in the environment must be 0 or 1, got {in_message(text)}"
        )
    return text != "0"


_Config = TypeVar("_Config", HttpClientConfig, QueueConfig)


def _struct(name: str, value: object, cls: type[_Config]) -> _Config:
    """Return ``value`` as ``cls``: an instance, a mapping of fields, or an object with them."""
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
    others = sorted(given.keys() - set(names))
    if others:
        hint = nearest_hint(others[0], names)
        raise PrefactorValueError(
            f"{name} has no field {in_message(others[0])}{hint}; its fields are {', '.join(names)}"
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
