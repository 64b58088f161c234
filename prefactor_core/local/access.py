"""Access: the requests that the local server takes, as an ASGI middleware.

Any page in a browser can send requests to this machine. A name that an attacker's DNS points here
is told by the Host header, a foreign page by the Origin header. An address that other machines
reach needs a token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import anyio
from msgspec import Struct
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefactor_core.exceptions.checks import is_loopback
from prefactor_core.local.errors import ApiError
from prefactor_core.local.requests import parse_body
from prefactor_core.local.tokens import TOKEN_PREFIX

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
BODY_TIMEOUT: Final = 30.0
"""Seconds that a client has to send the body of a request."""

COOKIE: Final = "prefactor_token"

_API: Final = "/api/"
_PRIVATE: Final = "/-/"
_LOGIN: Final = "/-/login"

# The page itself holds no data, and must be there to take the token from its own address.
_PAGE: Final = re.compile(r"/|/agents|/cli/connect|/runs/[^/]+|/-/login|/-/static/.*")

_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::([0-9]{1,5}))?", re.ASCII)

_HEADERS: Final = {
    # Trusted Types: a script that writes HTML throws, so that every payload stays a text.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Access:
    """Refuse what ``app``, served at ``host`` and ``port``, must not answer; see the module.

    ``token``: the secret that API and data of the pages ask for, in the header ``Authorization:
    Bearer …`` or in the cookie that ``POST /-/login {"token": …}`` sets; None for no secret.

    A body that is larger than ``max_body_bytes`` is answered 413, one that takes longer than
    ``body_timeout`` seconds 408. Answers outside of ``/api/`` get the headers that keep a page
    from running or loading what is not its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        token: str | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout: float = BODY_TIMEOUT,
    ) -> None:
        self._app = app
        self._host = host.lower()
        self._port = port
        self._token = None if token is None else token.encode()
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if not request.url.path.startswith(_API):
            send = _with_headers(send)
        try:
            answer = await self._checked(request, receive)
        except ApiError as error:
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            answer = JSONResponse(error.body(), error.status, headers)
        except _DisconnectedError:
            return
        if isinstance(answer, bytes):
            await self._app(scope, _replaying(answer, receive), send)
        else:
            await answer(scope, receive, send)

    async def _checked(self, request: Request, receive: Receive) -> bytes | Response:
        """The body of a request that the app may answer, or the answer to a login."""
        refusal = self._refusal(request)
        # Read the whole body also of a refused request, without keeping it: not every client looks
        # for an answer while it sends.
        most = self._max_body_bytes if refusal is None else 0
        body, size = await self._read(receive, most)
        if refusal is not None:
            raise refusal
        if size > self._max_body_bytes:
            message = f"the body has {size} bytes, at most {self._max_body_bytes} are taken"
            raise ApiError(413, "payload_too_large", message)
        if request.scope["path"] == _LOGIN and request.method == "POST":
            return self._log_in(body)
        return body

    def _refusal(self, request: Request) -> ApiError | None:
        try:
            self._check_host(request)
            self._check_token(request)
            self._check_origin(request)
        except ApiError as error:
            return error
        return None

    def _check_host(self, request: Request) -> None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0].lower()):
            message = f"this server does not answer for the host {', '.join(hosts)!r}"
            raise ApiError(403, "forbidden_host", message)

    def _is_own(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        if parts is None or int(parts[2] or 80) != self._port:
            return False
        name = parts[1].removesuffix(".").strip("[]")
        if is_loopback(name) or name == self._host:
            return True
        # An address is no name, so DNS cannot point it here.
        return is_any_address(self._host) and (
            _address(name) is not None or name == socket.gethostname().lower()
        )

    def _check_token(self, request: Request) -> None:
        if self._token is None or _PAGE.fullmatch(request.scope["path"]):
            return
        is_api = request.scope["path"].startswith(_API)
        given = request.headers.get("authorization", "").encode()
        cookie = request.cookies.get(COOKIE, "").encode()
        # Both, always: the time that it takes must reveal nothing.
        by_header = hmac.compare_digest(given, b"Bearer " + self._token)
        by_cookie = hmac.compare_digest(cookie, _cookie_of(self._token).encode())
        if by_cookie and not by_header:
            # The API asks for the token, too.
            headers = [each for each in request.scope["headers"] if each[0] != b"authorization"]
            own = b"authorization", b"Bearer " + self._token
            request.scope["headers"] = [*headers, own]
        elif not by_header and not (
            # The API knows the tokens that it made.
            is_api and given.startswith(f"Bearer {TOKEN_PREFIX}".encode())
        ):
            message = "send the server's token as 'Authorization: Bearer …', or open /#token=…"
            raise ApiError(401, "bad_authtoken", message)

    def _check_origin(self, request: Request) -> None:
        if request.method in _SAFE_METHODS:
            return
        # Every browser names the page that sends; SDKs send no Origin.
        own = f"{request.scope['scheme']}://{request.headers['host']}".lower()
        origins = request.headers.getlist("origin")
        if any(origin.lower() != own for origin in origins):
            message = f"a page of {', '.join(origins)!r} may not write to this server"
            raise ApiError(403, "forbidden_origin", message)
        if request.scope["path"].startswith(_PRIVATE):
            # A form cannot send JSON, whatever it says of its origin.
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                message = f"the body must be application/json, not {kind!r}"
                raise ApiError(415, "unsupported_media_type", message)

    async def _read(self, receive: Receive, most: int) -> tuple[bytes, int]:
        """The whole body, or b"" if it has more than ``most`` bytes; and its size."""
        parts: list[bytes] = []
        size = 0
        with anyio.move_on_after(self._body_timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _DisconnectedError
                part = message.get("body", b"")
                size += len(part)
                parts.append(part)
                if size > most:
                    parts.clear()
                if not message.get("more_body", False):
                    return b"".join(parts), size
        problem = f"the body did not arrive within {self._body_timeout:g} s"
        raise ApiError(408, "request_timeout", problem)

    def _log_in(self, body: bytes) -> Response:
        given = parse_body(body, _Login).token.encode()
        answer = Response(status_code=204)
        if self._token is not None:
            if not hmac.compare_digest(given, self._token):
                raise ApiError(401, "bad_authtoken", "this is not the server's token")
            answer.set_cookie(COOKIE, _cookie_of(self._token), httponly=True, samesite="strict")
        return answer


class _Login(Struct):
    token: str


class _DisconnectedError(Exception):
    """The client left before its body was whole."""


def is_any_address(host: str) -> bool:
    """Whether ``host`` stands for all addresses of this machine, as ``0.0.0.0`` does."""
    address = _address(host)
    return address is not None and address.is_unspecified


def _address(host: str) -> IPv4Address | IPv6Address | None:
    with suppress(ValueError):
        return ip_address(host)
    return None


def _cookie_of(token: bytes) -> str:
    # Browsers send a cookie to every port of a host: other servers must not learn the token.
    return hmac.new(token, COOKIE.encode(), hashlib.sha256).hexdigest()


def _replaying(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return send_with_headers
