"""The address of the API and how to call it, checked at construction."""

from __future__ import annotations

import re
from typing import Protocol

from msgspec import Struct
from msgspec.structs import fields

from prefactor_core.config.redis import RedisAddress, is_redis, without_password
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import (
    host_of,
    is_loopback,
    to_count,
    to_number,
    to_positive,
    to_statuses,
    to_text,
)
from prefactor_core.payloads.secret_str import SecretStr

LOCAL_PREFIX = "local:"
"""The beginning of an ``api_url`` that names a database file, not a server."""

_ADDRESS = r"(\w+://.*|[\w./-]+\.[a-z]{2,}(:\d+)?(/.*)?)"


class HttpClientOptions(Protocol):
    """The attributes of any object that can take the place of an :class:`HttpClientConfig`."""

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
    """The address of the API and how to call it. All times are in seconds.

    ``api_url``: ``https://…`` or ``http://…``; or ``local:PATH``, the same API on an SQLite file
    inside this process, which other processes may use as well (while one of them has it locked,
    that is an outage like any other); or the Redis server from which a relay brings operations to
    the API: ``redis://USER:PASSWORD@HOST:PORT/DATABASE``, ``rediss://…`` with TLS,
    ``unix:///SOCKET``, each with ``?prefix=`` if the relay has one. A password is moved from there
    to ``api_token``.
    ``request_timeout``: for one attempt, from connecting to the whole answer.
    ``connect_timeout``: for connecting alone.
    ``max_retries``: the further attempts that an agent waits for while its run is being
    registered, within ``registration_timeout``; then the agent goes on, and so do the attempts.
    ``api_token``: the secret that identifies callers to the API. ``local:PATH`` needs none, nor
    does ``http://`` to this machine (127.0.0.1, ::1, localhost): requests then have no
    ``Authorization``. It is kept as a :class:`SecretStr`, which no ``repr`` shows and no payload
    holds. For a Redis server it is the password of that server.
    ``retry_multiplier``, ``max_retry_delay``: growth and cap of the waits between attempts.
    ``initial_retry_delay``: accepted for compatibility, without effect: :class:`QueueConfig` sets
    the first wait.
    ``retry_on_status_codes``: HTTP statuses that mean "try again", besides every 5xx and 429.
    ``default_idempotency_key``: accepted for compatibility, without effect: every operation has
    a key of its own.

    Proxies and certificates come from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``,
    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` in the environment; ``local:PATH`` reads none of them.

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
        self.api_url = to_text("api_url", self.api_url)
        self.api_token = to_text("api_token", self.api_token)
        if not self.api_url:
            raise PrefactorValueError("api_url is required")
        if is_redis(self.api_url):
            self.api_url, password = without_password(self.api_url)
            self.api_token = password or self.api_token
            RedisAddress.parse(self.api_url)
        elif self.is_local:
            if not self.api_url.removeprefix(LOCAL_PREFIX):
                raise PrefactorValueError(
                    "api_url 'local:' names no file: write 'local:PATH', or 'local::memory:' "
                    "for a database that is gone afterwards"
                )
        elif "@" in self.api_url:
            # Not shown: the part before the @ is a secret.
            raise PrefactorValueError(
                "api_url must not hold a user name or password (it has an '@'): the API knows "
                "its callers by api_token"
            )
        elif not self.api_url.lower().startswith(("https://", "http://")):
            # Shown only if it looks like an address: it may be a token in the wrong place.
            shown = repr(self.api_url) if re.fullmatch(_ADDRESS, self.api_url) else "something else"
            raise PrefactorValueError(
                "api_url must begin with https://, http://, local:, redis://, rediss:// or "
                f"unix://, got {shown}"
            )
        elif (host := host_of(self.api_url)) is None:
            raise PrefactorValueError(
                f"api_url must have a host, and a port up to 65535 if any, got {self.api_url!r}"
            )
        elif not self.api_token and not (
            is_loopback(host) and self.api_url.lower().startswith("http://")
        ):
            raise PrefactorValueError(
                f"api_token is required for {self.api_url!r}: pass api_token=, or set "
                "PREFACTOR_API_TOKEN in the environment; only local:PATH and http://127.0.0.1 "
                "need none"
            )
        # The value is a secret: the message does not show it.
        if not self.api_token.isascii() or not self.api_token.isprintable():
            raise PrefactorValueError(
                "api_token has a character that no token has (a line break, or one beyond ASCII); "
                "was it copied whole and alone?"
            )
        self.request_timeout = to_positive("request_timeout", self.request_timeout)
        self.connect_timeout = to_positive("connect_timeout", self.connect_timeout)
        self.max_retries = to_count("max_retries", self.max_retries)
        self.initial_retry_delay = to_positive("initial_retry_delay", self.initial_retry_delay)
        self.max_retry_delay = to_positive("max_retry_delay", self.max_retry_delay)
        self.retry_multiplier = to_number("retry_multiplier", self.retry_multiplier)
        if not self.retry_multiplier >= 1:
            raise PrefactorValueError(
                f"retry_multiplier must be >= 1, got {in_message(self.retry_multiplier)}"
            )
        self.retry_on_status_codes = to_statuses(
            "retry_on_status_codes", self.retry_on_status_codes
        )

    @property
    def is_local(self) -> bool:
        """Whether the API is the one inside this process (``local:PATH``)."""
        return self.api_url.startswith(LOCAL_PREFIX)

    @property
    def redis(self) -> RedisAddress | None:
        """The Redis server that ``api_url`` names; None if it names none."""
        return RedisAddress.parse(self.api_url) if is_redis(self.api_url) else None

    def __setattr__(self, name: str, value: object) -> None:
        is_token = name == "api_token" and isinstance(value, str)
        super().__setattr__(name, SecretStr(value) if is_token else value)

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The token is in no repr; neither is its length or its first characters.
        names = [f.name for f in fields(self)]
        return [(n, SecretStr.MASK if n == "api_token" else getattr(self, n)) for n in names]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"
