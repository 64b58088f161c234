"""RedisServer: commands to one Redis server, and its errors as ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import anyio

from prefactor_core.config.redis import RedisAddress
from prefactor_core.context_stack import unrecorded
from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorContractError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValueError,
)
from prefactor_core.queue.importing import import_in_thread

if TYPE_CHECKING:
    import ssl

    import coredis

Word: TypeAlias = str | bytes | int
Answer: TypeAlias = "int | bytes | Sequence[Answer] | Mapping[bytes, bytes] | None"

PASSWORD: Final = "password"
"""The code of the error for a password that is missing or wrong."""

_FULL: Final = "OOM"
_NO_SCRIPT: Final = "no_script"
_TLS: Final = "tls"
_LACKS_PASSWORD: Final = "HELLO must be called with the client already authenticated"
_NO_DATABASE: Final = "DB index is out of range"
_FORBIDDEN_IN_SCRIPT: Final = ("ACL failure", "The user executing the script can't")
"""What Redis from 7.2 on, and 7.0, answer to a script whose user may not do all that is in it."""


class Script:
    """A Lua script. It may run when the memory is full: relays, which make room, use it."""

    def __init__(self, body: str) -> None:
        self.text = f"#!lua flags=allow-oom\n{body}"
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class RedisServer:
    """The Redis server at ``address``, while :meth:`serve` runs.

    ``timeout``: seconds for one command; ``connect_timeout``: for a connection. Every command makes
    one attempt, and raises a :class:`~prefactor_core.PrefactorApiError` that names the command
    and the server, and none of its arguments: they may be payloads.

    ====================================  ==========================================================
    Error                                 Reason
    ====================================  ==========================================================
    ``PrefactorUnreachableError``         no connection, a broken one, or no answer in time;
                                          code ``tls`` if TLS does not accept the other side
    ``PrefactorAuthError``                a command that the ACL forbids; code ``password`` if the
                                          password is missing or wrong
    ``PrefactorRateLimitError``           the memory is full: the server is busy
    ``PrefactorServerError``              the server loads its data, or is a replica
    ``PrefactorContractError``            any other answer: a key of another type, a wrong version
    ====================================  ==========================================================
    """

    def __init__(
        self,
        address: RedisAddress,
        password: str = "",
        *,
        timeout: float = 30.0,
        connect_timeout: float = 10.0,
    ) -> None:
        self.address = address
        self._password = password
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._client: coredis.Redis[bytes] | None = None
        self._ready = anyio.Event()

    async def prepare(self) -> None:
        """Import what commands need, and read the files for TLS, so that :meth:`serve` need not
        fail. Raises :class:`PrefactorValueError` without the extra, and for an unusable file."""
        await self._make_client()

    async def serve(self) -> None:
        """Keep the connections, until it is cancelled.

        Not around a block of the caller's: connections are tasks in a group, which would cancel
        the block, and wrap its exception.
        """
        client = await self._make_client()
        try:
            async with client:
                self._client = client
                self._ready.set()
                await anyio.sleep_forever()
        finally:
            self._client, self._ready = None, anyio.Event()

    async def run(self, *words: Word, waits: float = 0.0) -> Answer:
        """Run one command. ``waits``: seconds that it blocks on the server, in addition."""
        from coredis import exceptions

        name = str(words[0])
        try:
            with unrecorded(), anyio.fail_after(self._timeout + waits):
                await self._ready.wait()
                if self._client is None:
                    raise RuntimeError("the connection is closed")
                request = self._client.create_request(
                    name.encode(), *words[1:], callback=_unchanged
                )
                return cast("Answer", await request)
        except TimeoutError:
            message = f"no answer within {self._timeout + waits:g} s"
            raise PrefactorUnreachableError(f"{name} at {self.address}: {message}") from None
        except (OSError, RuntimeError, exceptions.RedisError) as error:
            raise self._mapped(name, error) from None

    async def run_all(self, commands: Sequence[Sequence[Word]]) -> list[Answer]:
        """Run commands in one round trip; raise the first error, after all have run."""
        answers = await self.run_each(commands)
        for answer in answers:
            if isinstance(answer, PrefactorApiError):
                raise answer
        return cast("list[Answer]", answers)

    async def run_each(
        self, commands: Sequence[Sequence[Word]]
    ) -> list[Answer | PrefactorApiError]:
        """Run commands in one round trip; return their answers, and the errors of those that
        failed. Raises an error that concerns all of them."""
        if len(commands) == 1:
            return [await self.run(*commands[0])]
        from coredis import exceptions

        name = str(commands[0][0]) if commands else ""
        try:
            with unrecorded(), anyio.fail_after(self._timeout):
                await self._ready.wait()
                if self._client is None:
                    raise RuntimeError("the connection is closed")
                async with self._client.pipeline(transaction=False, raise_on_error=False) as pipe:
                    requests = [
                        pipe.create_request(str(words[0]).encode(), *words[1:], callback=_unchanged)
                        for words in commands
                    ]
                answers: list[Answer | PrefactorApiError] = []
                for words, request in zip(commands, requests, strict=True):
                    try:
                        answers.append(cast("Answer", await request))
                    except exceptions.RedisError as error:
                        answers.append(self._mapped(str(words[0]), error))
        except TimeoutError:
            message = f"no answer within {self._timeout:g} s"
            raise PrefactorUnreachableError(f"{name} at {self.address}: {message}") from None
        except (OSError, RuntimeError, exceptions.RedisError) as error:
            raise self._mapped(name, error) from None
        return answers

    async def call(self, script: Script, keys: Sequence[str], *words: Word) -> Answer:
        """Run a script; bring it to the server first if the server lacks it."""
        try:
            return await self.run("EVALSHA", script.sha, len(keys), *keys, *words)
        except PrefactorContractError as error:
            if error.code != _NO_SCRIPT:
                raise
            # The server was restarted, or has never had it.
            return await self.run("EVAL", script.text, len(keys), *keys, *words)

    async def _make_client(self) -> coredis.Redis[bytes]:
        try:
            await import_in_thread("prefactor_core.relay.connections")
        except ImportError as error:
            raise PrefactorValueError(
                f"{self.address} needs the extra 'redis' of this package ({error}): "
                "pip install '.[redis]' in its folder"
            ) from None
        from prefactor_core.relay.connections import make_client

        ssl_context = self._ssl_context() if self.address.tls else None
        return make_client(self.address, self._password, self._connect_timeout, ssl_context)

    def _ssl_context(self) -> ssl.SSLContext:
        import ssl  # here: it takes milliseconds to import

        address = self.address
        try:
            context = ssl.create_default_context(cafile=address.ca_certs)
            if address.certfile is not None:
                context.load_cert_chain(address.certfile, address.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise PrefactorValueError(
                f"a file for TLS with {address} is unusable: {error}"
            ) from None
        return context

    def _mapped(self, name: str, error: Exception) -> PrefactorApiError:
        from coredis import exceptions

        where, text = f"{name} at {self.address}", str(error)
        match error:
            case exceptions.NoScriptError():
                return PrefactorContractError(f"{where}: no such script", code=_NO_SCRIPT)
            case exceptions.AuthenticationError():
                if _LACKS_PASSWORD in text:
                    text = "the server asks for a password: redis://USER:PASSWORD@HOST"
                return PrefactorAuthError(f"{where}: {text}", code=PASSWORD)
            case exceptions.AuthorizationError():
                # The text names users and commands, no arguments.
                return PrefactorAuthError(f"{where}: {text}")
            case _ if any(words in text for words in _FORBIDDEN_IN_SCRIPT):
                return PrefactorAuthError(f"{where}: a command of the script is forbidden")
            case exceptions.BusyLoadingError() | exceptions.ReadOnlyError():
                return PrefactorServerError(f"{where}: the server is not ready", code="not_ready")
            case exceptions.ConnectionError() | OSError() | RuntimeError():
                # The reason, as of a certificate that is not valid, is in the cause.
                cause = "" if error.__cause__ is None else f" ({_first_line(str(error.__cause__))})"
                code = _TLS if self._is_of_tls(error.__cause__) else "unknown"
                return PrefactorUnreachableError(f"{where}: {_first_line(text)}{cause}", code=code)
            case _ if text.startswith(_FULL):
                return PrefactorRateLimitError(
                    f"{where}: the memory of the server is full (maxmemory)", code="full"
                )
            case _ if _NO_DATABASE in text:
                message = f"{where}: there is no database {self.address.database}"
                return PrefactorContractError(message)
            case _:
                return PrefactorContractError(f"{where}: {type(error).__name__}")

    def _is_of_tls(self, cause: BaseException | None) -> bool:
        if not self.address.tls:
            return False
        import ssl  # here: it takes milliseconds to import

        # The end of a connection in its handshake may come from a server that stops.
        return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError)


def may_pass(error: PrefactorApiError) -> bool:
    """Whether ``error`` may end without a change of the address, the password or the rights: the
    server is away, starts, is a replica for now, or is full."""
    return (
        isinstance(
            error, PrefactorUnreachableError | PrefactorServerError | PrefactorRateLimitError
        )
        and error.code != _TLS
    )


@asynccontextmanager
async def open_server(server: RedisServer) -> AsyncGenerator[RedisServer]:
    """Serve beside a block; the block's exception leaves it as itself."""
    await server.prepare()  # in the group, its error would be wrapped
    raised: BaseException | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        try:
            yield server
        except BaseException as error:
            raised = error
        group.cancel_scope.cancel()
    if raised is not None:
        raise raised


def _unchanged(answer: object, **_: object) -> object:
    return answer


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:200] or "the connection broke"
