"""proxy_for: the proxy that the environment names for an address."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from prefactor_core.exceptions import PrefactorValueError

_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_HOST: Final = re.compile(r"[\w.:-]+")


@dataclass(frozen=True)
class Proxy:
    """The address and login of a proxy. ``scheme``: http, https, socks5 or socks5h."""

    scheme: str
    host: str
    port: int
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


def proxy_for(url: str) -> Proxy | None:
    """The proxy for requests to ``url``, or None.

    Read from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` by the rules of
    Python's standard library, or from the settings of macOS and Windows. An entry of ``NO_PROXY``
    that is no host matches none.

    Raises :class:`PrefactorValueError`, which shows no password, for an invalid proxy.
    """
    parts = urlsplit(url)
    kind, proxy = _named(parts)
    if proxy is None or _is_bypassed(parts):
        return None
    # The value is not shown: it may hold a password.
    instead = f"; to ask {parts.hostname} without a proxy, add that to NO_PROXY"
    if not _HOST.fullmatch(proxy.host) or proxy.port == 0:
        raise PrefactorValueError(
            f"{_variable(kind)} is no address of a proxy: it must be like http://HOST:PORT, with "
            f"odd characters of a password written as %XX{instead}"
        )
    if proxy.scheme not in _PORTS:
        raise PrefactorValueError(
            f"{_variable(kind)} names a proxy of a kind that is not supported: it must begin with "
            f"http://, https://, socks5:// or socks5h://{instead}"
        )
    if proxy.scheme.startswith("socks") and find_spec("socksio") is None:
        raise PrefactorValueError(
            f"{_variable(kind)} names a SOCKS proxy, which needs the package socksio: "
            f"pip install 'httpx[socks]'{instead}"
        )
    return proxy


def _named(parts: SplitResult) -> tuple[str, Proxy | None]:
    """The kind of variable that names a proxy, and the proxy, which may be invalid.

    Raises nothing: a traceback with locals would show the password.
    """
    proxies = getproxies()
    kind = parts.scheme if proxies.get(parts.scheme) else "all"
    value = proxies.get(kind)
    if not value:
        return kind, None
    try:
        proxy = urlsplit(value if "://" in value else f"http://{value}")
        host, port = proxy.hostname or "", proxy.port
    except ValueError:
        return kind, Proxy("", "", 0)
    scheme = proxy.scheme.lower()
    return kind, Proxy(
        scheme,
        host,
        _PORTS.get(scheme, 1) if port is None else port,
        unquote(proxy.username or ""),
        unquote(proxy.password or ""),
    )


def _is_bypassed(parts: SplitResult) -> bool:
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    if ":" in host:
        return bool(proxy_bypass(host) or proxy_bypass(f"[{host}]:{port}"))
    return bool(proxy_bypass(f"{host}:{port}"))


def _variable(kind: str) -> str:
    """The name of the environment variable for a kind of proxy, for messages."""
    for name in (f"{kind}_proxy", f"{kind}_PROXY".upper()):
        if os.environ.get(name):
            return name
    return "the proxy in the settings of this system"
