"""What a client is configured with, checked when it is made.

The classes are plain mutable structs: an assignment after construction is not checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast
from urllib.parse import urlsplit

from msgspec import Struct, field
from msgspec.structs import fields

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.schema_registry import SchemaRegistry

LOCAL_PREFIX = "local:"
"""What an ``api_url`` begins with that names a database file and no server."""

_ADDRESS = re.compile(r"(\w+://.*|[\w./-]+\.[a-z]{2,}(:\d+)?(/.*)?)")

_NOTHING_CONFIGURED = (
    "nothing says which Prefactor to record to. Either set PREFACTOR_API_URL and "
    "PREFACTOR_API_TOKEN in the environment (or pass api_url= and api_token=), or pass "
    'api_url="local:PATH" to record into a database file without an account.'
)


class HttpClientOptions(Protocol):
    """What any object must have to stand in for an :class:`HttpClientConfig`."""

    @property
    def api_url(self) -> str: ...
    @property
    def api_token(self) -> str: ...
    @property
    def request_timeout(self) -> float: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def max_retries(self) -> int: ...
    @property
    def initial_retry_delay(self) -> float: ...
    @property
    def max_retry_delay(self) -> float: ...
    @property
    def retry_multiplier(self) -> float: ...
    @property
    def retry_on_status_codes(self) -> tuple[int, ...]: ...


class HttpClientConfig(Struct):
    """Where the API is and how it is called. All times are in seconds.

    ``api_url``: ``https://…`` or ``http://…``; or ``local:PATH``, the same API on an SQLite
    file inside this process, which needs no token.
    ``request_timeout``: for one attempt, from connecting to the whole answer.
    ``connect_timeout``: for the connecting alone.
    ``max_retries``, ``initial_retry_delay``: how often, and first after which wait, a
    registration is tried again (it is the one call that the agent waits for). What is
    recorded in the background is retried as :class:`QueueConfig` says.
    ``retry_multiplier``, ``max_retry_delay``: growth and cap of the waits of both.
    ``retry_on_status_codes``: HTTP statuses that mean "try again", besides every 5xx and 429.
    ``default_idempotency_key``: taken for compatibility and without effect: every
    operation has a key of its own.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    api_url: str
    api_token: str = ""
    request_timeout: float = 30.0
    connect_timeout: float = 10.0
    max_retries: int = 3
    initial_retry_delay: float = 1.0
    max_retry_delay: float = 60.0
    retry_multiplier: float = 2.0
    retry_on_status_codes: tuple[int, ...] = (429, 500, 502, 503, 504)
    default_idempotency_key: str | None = None

    def __post_init__(self) -> None:
        self.api_url = _text("api_url", self.api_url)
        self.api_token = _text("api_token", self.api_token)
        if not self.api_url:
            raise PrefactorValueError("api_url is required")
        if self.is_local:
            if not self.api_url.removeprefix(LOCAL_PREFIX):
                raise PrefactorValueError(
                    "api_url 'local:' names no file: write 'local:PATH', or 'local::memory:' "
                    "for a database that is gone afterwards"
                )
        elif "@" in self.api_url:
            # Not shown: what stands before the @ is a secret.
            raise PrefactorValueError(
                "api_url must not hold a user name or password (it has an '@'): the API knows "
                "its callers by api_token"
            )
        elif not self.api_url.lower().startswith(("https://", "http://")):
            # What looks like no address is not shown: it may be a token in the wrong place.
            shown = repr(self.api_url) if _ADDRESS.fullmatch(self.api_url) else "something else"
            raise PrefactorValueError(
                f"api_url must begin with https://, http:// or local:, got {shown}"
            )
        elif not _has_host(self.api_url):
            raise PrefactorValueError(
                f"api_url must have a host, and a port up to 65535 if any, got {self.api_url!r}"
            )
        elif not self.api_token:
            raise PrefactorValueError(
                f"api_token is required for {self.api_url!r}: pass api_token=, or set "
                "PREFACTOR_API_TOKEN in the environment; only local:PATH needs none"
            )
        # The value is a secret: the message says where the fault is, not what is there.
        if not self.api_token.isascii() or not self.api_token.isprintable():
            raise PrefactorValueError(
                "api_token has a character that no token has (a line break, or one beyond ASCII); "
                "was it copied whole and alone?"
            )
        self.request_timeout = _positive("request_timeout", self.request_timeout)
        self.connect_timeout = _positive("connect_timeout", self.connect_timeout)
        self.max_retries = _count("max_retries", self.max_retries)
        self.initial_retry_delay = _positive("initial_retry_delay", self.initial_retry_delay)
        self.max_retry_delay = _positive("max_retry_delay", self.max_retry_delay)
        self.retry_multiplier = _number("retry_multiplier", self.retry_multiplier)
        if not self.retry_multiplier >= 1:
            raise PrefactorValueError(
                f"retry_multiplier must be >= 1, got {self.retry_multiplier!r}"
            )
        self.retry_on_status_codes = _statuses(self.retry_on_status_codes)

    @property
    def is_local(self) -> bool:
        """Whether the API is the one inside this process (``local:PATH``)."""
        return self.api_url.startswith(LOCAL_PREFIX)

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The token is in no repr; neither is its length or its first characters.
        names = [f.name for f in fields(self)]
        return [(n, "***" if n == "api_token" else getattr(self, n)) for n in names]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


class QueueConfig(Struct):
    """How what was recorded is delivered in the background.

    ``num_workers``: tasks that send at the same time, 1 to 20. The operations of one agent
    instance always go through one of them, in order.
    ``max_retries``: how often one operation that the API fails to take, while it is there
    for others, is tried again before it is given up; 0 or more. While the API itself is
    away, nothing is given up for as long as the scope lives.
    ``retry_delay_base``: the first wait before another attempt, in seconds.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    num_workers: int = 3
    max_retries: int = 3
    retry_delay_base: float = 1.0

    def __post_init__(self) -> None:
        self.num_workers = _whole("num_workers", self.num_workers)
        if not 1 <= self.num_workers <= 20:
            raise PrefactorValueError(
                f"num_workers must be between 1 and 20, got {self.num_workers!r}"
            )
        self.max_retries = _count("max_retries", self.max_retries)
        self.retry_delay_base = _positive("retry_delay_base", self.retry_delay_base)


class PrefactorCoreConfig(Struct, kw_only=True):
    """What a :class:`~prefactor_core.PrefactorCoreClient` works with. Times in seconds.

    ``http_config``: an :class:`HttpClientConfig`, a mapping of its fields, or any object
    with the same attributes (the official package's dataclass).
    ``queue_config``: a :class:`QueueConfig` or a mapping of its fields.
    ``schema_registry``: span types to register with every agent instance.
    ``registration_timeout``: how long ``create_agent_instance`` tries to register a run.
    ``drain_timeout``: how long leaving the scope waits until everything is delivered.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    http_config: HttpClientConfig
    queue_config: QueueConfig = field(default_factory=QueueConfig)
    schema_registry: SchemaRegistry | None = None
    registration_timeout: float = 10.0
    drain_timeout: float = 10.0

    if TYPE_CHECKING:
        # What is taken is wider than what is kept, which a struct's fields can't say.
        def __init__(
            self,
            *,
            http_config: HttpClientConfig | HttpClientOptions | Mapping[str, object],
            queue_config: QueueConfig | Mapping[str, object] = ...,
            schema_registry: SchemaRegistry | None = None,
            registration_timeout: float = 10.0,
            drain_timeout: float = 10.0,
        ) -> None: ...

    def __post_init__(self) -> None:
        self.http_config = _struct("http_config", self.http_config, HttpClientConfig)
        self.queue_config = _struct("queue_config", self.queue_config, QueueConfig)
        if self.schema_registry is not None and not isinstance(
            self.schema_registry, SchemaRegistry
        ):
            raise PrefactorValueError(
                "schema_registry must be a SchemaRegistry, got "
                f"{type(self.schema_registry).__qualname__}"
            )
        self.registration_timeout = _positive("registration_timeout", self.registration_timeout)
        self.drain_timeout = _number("drain_timeout", self.drain_timeout)
        if not self.drain_timeout >= 0:
            raise PrefactorValueError(
                f"drain_timeout must be non-negative, got {self.drain_timeout!r}"
            )

    @classmethod
    def from_env(
        cls,
        *,
        api_url: str | None = None,
        api_token: str | None = None,
        schema_registry: SchemaRegistry | None = None,
    ) -> Self:
        """The configuration that ``PREFACTOR_API_URL`` and ``PREFACTOR_API_TOKEN`` give.

        An argument goes before its variable. The token of the environment is not used
        with a ``local:`` URL. Raises :class:`PrefactorValueError` if there is no URL, or no
        token where one is needed.
        """
        url = _text("api_url", api_url or "") or os.environ.get("PREFACTOR_API_URL", "").strip()
        if not url:
            raise PrefactorValueError(_NOTHING_CONFIGURED)
        if not api_token and not url.startswith(LOCAL_PREFIX):
            api_token = os.environ.get("PREFACTOR_API_TOKEN")
        return cls(
            http_config=HttpClientConfig(api_url=url, api_token=api_token or ""),
            schema_registry=schema_registry,
        )


_Config = TypeVar("_Config", HttpClientConfig, QueueConfig)


def _struct(name: str, value: object, cls: type[_Config]) -> _Config:
    """``value`` as ``cls``: itself, a mapping of its fields, or an object that has them."""
    if isinstance(value, cls):
        return value
    kind = type(value).__qualname__
    names = [f.name for f in fields(cls)]
    given: dict[str, Any]
    if isinstance(value, Mapping):
        given = {str(key): item for key, item in cast("Mapping[object, object]", value).items()}
        unknown = sorted(given.keys() - set(names))
        if unknown:
            raise PrefactorValueError(
                f"{name} has no field {unknown[0]!r}; its fields are {', '.join(names)}"
            )
    else:
        given = {n: getattr(value, n) for n in names if hasattr(value, n)}
    if cls is HttpClientConfig and "api_url" not in given:
        raise PrefactorValueError(
            f"{name} must be an HttpClientConfig, a mapping of its fields or an object with "
            f"the same attributes, got {kind} without api_url"
        )
    if not given and not isinstance(value, Mapping):
        raise PrefactorValueError(
            f"{name} must be a {cls.__name__} or a mapping of its fields, got {kind}"
        )
    return cls(**given)


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is no number, or too large
        return False


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise PrefactorValueError(f"{name} must be a string, got {type(value).__qualname__}")
    return value.strip()


def _number(name: str, value: object) -> float:
    """A number, or the text of one (from an environment or a file)."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise PrefactorValueError(f"{name} must be a number, got {value!r}")


def _whole(name: str, value: object) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise PrefactorValueError(f"{name} must be a whole number, got {value!r}")
    return int(number)


def _positive(name: str, value: object) -> float:
    number = _number(name, value)
    if not number > 0:
        raise PrefactorValueError(f"{name} must be positive, got {value!r}")
    return number


def _statuses(value: object) -> tuple[int, ...]:
    name = "retry_on_status_codes"
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise PrefactorValueError(f"{name} must be a collection of HTTP statuses, got {value!r}")
    statuses = tuple(_whole(name, status) for status in cast("Iterable[object]", value))
    for status in statuses:
        if not 400 <= status <= 599:
            raise PrefactorValueError(f"{name} must be between 400 and 599, got {status!r}")
    return statuses


def _count(name: str, value: object) -> int:
    number = _whole(name, value)
    if number < 0:
        raise PrefactorValueError(f"{name} must be non-negative, got {value!r}")
    return number
