"""RedisAddress: the parts of an ``api_url`` that names a Redis server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Self

from msgspec import Struct

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.payloads.secret_str import SecretStr

SCHEMES: Final = ("redis://", "rediss://", "unix://")
"""The beginnings of an ``api_url`` that names a Redis server."""

DEFAULT_PREFIX: Final = "pf"

_FORM: Final = (
    "write redis://HOST:PORT/DATABASE, rediss://... with TLS, or unix:///PATH?db=DATABASE"
)
_OPTIONS: Final = ("db", "prefix", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class RedisAddress(Struct, frozen=True, kw_only=True):
    """A Redis server, and the keys of one account on it.

    ``host`` and ``port``, or ``path`` of a socket. ``username``: of its ACL; without one Redis uses
    ``default``. ``database``: its number. ``prefix``: the beginning of all keys; agents and relays
    of one account have the same one. ``tls``: whether to use TLS; its certificate must be valid for
    ``host``. ``ca_certs``, ``certfile``, ``keyfile``: files for TLS, in PEM.
    """

    host: str = ""
    port: int = 6379
    path: str = ""
    username: str | None = None
    database: int = 0
    prefix: str = DEFAULT_PREFIX
    tls: bool = False
    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return the parts of ``url``, without its password: see :func:`without_password`.

        ``?db=``, ``?prefix=``, ``?ssl_ca_certs=``, ``?ssl_certfile=`` and ``?ssl_keyfile=`` set
        what the other parts do not. Raises :class:`PrefactorValueError`, which shows no part of the
        address that could be a secret.
        """
        from urllib.parse import parse_qs, unquote, urlsplit  # here: slow to import

        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            options = parse_qs(
                parts.query, strict_parsing=bool(parts.query), keep_blank_values=True
            )
        except ValueError:
            raise PrefactorValueError(f"api_url is no address of a Redis server: {_FORM}") from None
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown or any(len(values) > 1 for values in options.values()):
            raise PrefactorValueError(
                f"api_url has an option that Redis addresses lack: after the '?' come "
                f"{', '.join(_OPTIONS)}, each once"
            )
        given = {name: values[0] for name, values in options.items()}
        is_socket = parts.scheme == "unix"
        path = unquote(parts.path)
        if is_socket and (not path.strip("/") or host is not None):
            raise PrefactorValueError(f"api_url names no socket: {_FORM}")
        if not is_socket and (host is None or port == 0):
            raise PrefactorValueError(f"api_url must have a host, and a port if any: {_FORM}")
        tls = parts.scheme == "rediss"
        if not tls and any(name.startswith("ssl_") for name in given):
            raise PrefactorValueError("api_url has options for TLS: it must begin with rediss://")
        if ("ssl_keyfile" in given) and "ssl_certfile" not in given:
            raise PrefactorValueError("api_url has ssl_keyfile, and no ssl_certfile")
        database = given.get("db") or ("" if is_socket else path.strip("/")) or "0"
        if re.fullmatch(r"[0-9]{1,9}", database) is None:
            raise PrefactorValueError(f"the database in api_url must be a number: {_FORM}")
        return cls(
            host=host or "",
            port=port or 6379,
            path=path if is_socket else "",
            username=unquote(parts.username) if parts.username else None,
            database=int(database),
            prefix=_prefix(given),
            tls=tls,
            ca_certs=given.get("ssl_ca_certs"),
            certfile=given.get("ssl_certfile"),
            keyfile=given.get("ssl_keyfile"),
        )

    def __str__(self) -> str:
        # For log lines and errors.
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"


def _prefix(given: Mapping[str, str]) -> str:
    prefix = given.get("prefix", DEFAULT_PREFIX)
    if _PREFIX.fullmatch(prefix) is None:
        raise PrefactorValueError(
            "the prefix in api_url must be 1 to 64 letters, digits, dots, dashes or underscores"
        )
    return prefix


def is_redis(url: str) -> bool:
    """Whether ``url`` names a Redis server."""
    return url.lower().startswith(SCHEMES)


def without_password(url: str) -> tuple[str, SecretStr]:
    """Return ``url`` without its password, and that password, empty if there is none."""
    from urllib.parse import unquote

    scheme, _, rest = url.partition("://")
    end = re.search(r"[/?#]", rest)
    # A password may hold an '@' that nobody has quoted: the last one is the divider.
    authority = rest if end is None else rest[: end.start()]
    user, at, host = authority.rpartition("@")
    name, colon, password = user.partition(":")
    if not at or not colon:
        return url, SecretStr("")
    bare = f"{name}@{host}" if name else host
    return f"{scheme}://{bare}{rest[len(authority) :]}", SecretStr(unquote(password))
