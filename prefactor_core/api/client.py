"""ApiClient: the endpoints of the Prefactor API, typed, one attempt per call."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar, cast

import anyio
import anyio.lowlevel
import httpx
import msgspec

from prefactor_core.api import requests
from prefactor_core.api.answers import (
    AgentAnswer,
    AgentInstanceAnswer,
    AgentSpanAnswer,
    Control,
    Details,
    Generated,
    Output,
    Outputs,
    Summaries,
    decode,
)
from prefactor_core.api.errors import error_from_answer
from prefactor_core.api.http_request import make_request
from prefactor_core.api.log_mask import masks_in_logs
from prefactor_core.api.quoting import quoted
from prefactor_core.api.reading import UnreadableAnswerError, read_body
from prefactor_core.config.http import HttpClientConfig
from prefactor_core.context_stack import unrecorded
from prefactor_core.exceptions import (
    PrefactorContractError,
    PrefactorUnreachableError,
    PrefactorValueError,
)
from prefactor_core.operations import (
    CreateSpan,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    identifiers,
)
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.queue.importing import import_in_thread

T = TypeVar("T")

AsgiMessage: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[
    [AsgiMessage, Callable[[], Awaitable[AsgiMessage]], Callable[[AsgiMessage], Awaitable[None]]],
    Awaitable[None],
]
"""An ASGI application, as its specification types it."""

_SLICE_ITEMS = 50
_SLICE_BYTES = 256 * 1024
"""The most of a bulk request that is encoded in one turn of the loop."""

_PAGE_SIZE: Final = 100

_MOST_BYTES: Final = 2 * 1024 * 1024
"""The most bytes of an answer, besides twice the bytes of the request. Decoding takes one turn of
the loop, about 2 ms for each million."""

_MOST_PAGE_BYTES: Final = 64 * 1024 * 1024
"""The same for a page of a list, which can have 100 spans with their payloads."""

_MOST_ERROR_BYTES: Final = 256 * 1024
"""The same for an error."""


class ApiClient:
    """The Prefactor API; ``async with ApiClient(config, sdk_header) as api``.

    Every method makes one attempt and raises a :class:`~prefactor_core.PrefactorApiError` if that
    fails. ``asgi_app``: an application inside this process that takes the calls, without a socket.
    ``sdk_header``: returns the packages that record, for the header ``X-Prefactor-SDK`` of each
    request; None for a reader. ``receiver``: its name in log lines.
    """

    def __init__(
        self,
        config: HttpClientConfig,
        sdk_header: Callable[[], str] | None,
        asgi_app: AsgiApp | None = None,
    ) -> None:
        self.receiver = "the Prefactor API"
        self._config = config
        self._sdk_header = sdk_header
        self._asgi_app = asgi_app
        self._connections = AsyncExitStack()
        self._closed = False

    async def __aenter__(self) -> Self:
        config = self._config
        self._headers = {
            "User-Agent": f"python-httpx/{httpx.__version__}",
            "Connection": "keep-alive",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
        }
        if config.api_token:
            # A SecretStr, so that no traceback with locals shows the token.
            self._headers["Authorization"] = SecretStr(f"Bearer {config.api_token}")
        secrets = [config.api_token]
        transport: httpx.AsyncBaseTransport
        if self._asgi_app is not None:
            base = "http://in-process"
            transport = httpx.ASGITransport(self._asgi_app)
        else:
            base = config.api_url.rstrip("/")
            await import_in_thread("prefactor_core.api.transport")
            from prefactor_core.api.transport import open_transport

            transport = network = await open_transport(base)
            secrets.append(network.password)
        try:
            self._base = str(httpx.URL(f"{base}/api/v1/"))
        except httpx.InvalidURL as error:
            raise PrefactorUnreachableError(
                f"api_url {config.api_url!r} cannot be asked: {error}"
            ) from None
        # Without httpx.AsyncClient, which logs each request, and which tracers instrument.
        self._transport = transport
        self._timeouts = httpx.Timeout(None, connect=config.connect_timeout).as_dict()
        self._connections.enter_context(masks_in_logs(*secrets))
        self._connections.push_async_callback(transport.aclose)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True  # a late call must not open a connection
        await self._connections.aclose()

    @property
    def api_url(self) -> str:
        """The address of the API, as it was configured."""
        return self._config.api_url

    async def ping(self) -> None:
        """GET ping: check that the API is reachable and takes the token."""
        await self._call("GET", "ping", dict[str, msgspec.Raw])

    async def generate_pfid(self) -> str:
        """POST pfid/generate: a new PFID, of the partition of the token's account."""
        generated = await self._call("POST", "pfid/generate", Generated, b'{"count":1}')
        if not [*filter(identifiers.is_pfid, generated.pfids)]:
            raise PrefactorContractError("pfid/generate was answered without a PFID")
        return generated.pfids[0]

    async def send(
        self, operation: Operation, *, given_id: bool = True
    ) -> Details[AgentInstanceAnswer] | Details[AgentSpanAnswer]:
        """Send one operation by its own endpoint; return the run or span as the API stored it.

        ``given_id``: False to let the API make the id of a span. Raises
        :class:`~prefactor_core.exceptions.OperationError` for an operation that the API has no
        endpoint for.
        """
        path, body = requests.single(operation, given_id=given_id)
        if isinstance(operation, CreateSpan | FinishSpan):
            return await self._call("POST", path, Details[AgentSpanAnswer], body)
        stored = await self._call("POST", path, Details[AgentInstanceAnswer], body)
        if isinstance(operation, RegisterAgentInstance) and not identifiers.is_pfid(
            stored.details.id
        ):
            raise PrefactorContractError(
                "the API registered an agent instance as "
                f"'{self._quoted(stored.details.id)}', which is no PFID"
            )
        return stored

    async def terminate_agent_instance(self, instance_id: str, reason: str) -> AgentInstanceAnswer:
        """Terminate a run: answers to its spans carry the control signal from now on."""
        path, body = requests.termination(instance_id, reason, identifiers.generate(0))
        return (await self._call("POST", path, Details[AgentInstanceAnswer], body)).details

    async def bulk(
        self, operations: Sequence[Operation], given_ids: Sequence[bool]
    ) -> dict[str, Output]:
        """Send several operations by POST bulk. The API runs them in order, up to the first that
        fails.

        ``given_ids``: for each operation, False to let the API make the id of its span. Returns the
        outputs by idempotency key; operations after a failure have none. Raises
        :class:`~prefactor_core.exceptions.OperationError` as :meth:`send`, and
        :class:`~prefactor_core.exceptions.PrefactorContractError` if there is no output at all.
        """
        items: list[bytes] = []
        size = written = 0
        for operation, given_id in zip(operations, given_ids, strict=True):
            if size >= _SLICE_BYTES or len(items) - written >= _SLICE_ITEMS:
                size, written = 0, len(items)
                await anyio.lowlevel.checkpoint()
            _, body = requests.single(operation, given_id=given_id)
            items.append(requests.item(operation, self._encoded("POST bulk", body)))
            size += len(items[-1])
        content = b'{"items":[' + b",".join(items) + b"]}"
        outputs = (await self._call("POST", "bulk", Outputs, content)).outputs
        if not any(operation.idempotency_key in outputs for operation in operations):
            # Else a caller would send them again at once, and for ever.
            raise PrefactorContractError("bulk was answered without an output for any item")
        return outputs

    async def get_agent_instance(self, instance_id: str) -> AgentInstanceAnswer:
        """One stored run."""
        path = f"agent_instance/{instance_id}"
        return (await self._call("GET", path, Details[AgentInstanceAnswer])).details

    def list_agent_instances(
        self, agent_id: str, *, newest_first: bool = False
    ) -> AsyncGenerator[AgentInstanceAnswer, None]:
        """The stored runs of an agent, oldest first, page by page. Close it unless exhausted."""
        direction = "desc" if newest_first else "asc"
        query = {"agent_id": agent_id}
        return self._list("agent_instance", query, Summaries[AgentInstanceAnswer], direction)

    async def newest_agent_instance(self, agent_id: str) -> AgentInstanceAnswer | None:
        """The newest run of an agent, or None."""
        query = {"agent_id": agent_id, **requests.page(0, 1, "desc")}
        page = await self._read_page("agent_instance", query, Summaries[AgentInstanceAnswer])
        return page.summaries[0] if page.summaries else None

    async def agent_instance_page(
        self, agent_id: str, offset: int, size: int
    ) -> Summaries[AgentInstanceAnswer]:
        """The stored runs of an agent from ``offset`` on, oldest first; ``size``: 1 to 100."""
        query = {"agent_id": agent_id, **requests.page(offset, size, "asc")}
        return await self._read_page("agent_instance", query, Summaries[AgentInstanceAnswer])

    async def agent_span_page(
        self, agent_id: str, offset: int, size: int
    ) -> Summaries[AgentSpanAnswer]:
        """The stored spans of an agent from ``offset`` on, with their summaries, likewise."""
        query = requests.page(offset, size, "asc")
        query |= {"agent_id": agent_id, "include_summaries": "true"}
        return await self._read_page("agent_spans", query, Summaries[AgentSpanAnswer])

    def list_agents(self) -> AsyncIterator[AgentAnswer]:
        """The agents of the account, page by page."""
        return self._list("agent", {}, Summaries[AgentAnswer])

    def list_agent_spans(self, instance_id: str) -> AsyncIterator[AgentSpanAnswer]:
        """The stored spans of a run with their summaries, oldest first, page by page."""
        query = {"agent_instance_id": instance_id, "include_summaries": "true"}
        return self._list("agent_spans", query, Summaries[AgentSpanAnswer])

    async def _list(
        self,
        path: str,
        query: Mapping[str, str],
        page_type: type[Summaries[T]],
        direction: str = "asc",
    ) -> AsyncGenerator[T, None]:
        offset: int | None = 0
        while offset is not None:
            asked = {**query, **requests.page(offset, _PAGE_SIZE, direction)}
            page = await self._read_page(path, asked, page_type)
            for summary in page.summaries:
                yield summary
            offset = page.pagination.next_page_offset if page.pagination else None

    async def _read_page(
        self, path: str, query: Mapping[str, str], page_type: type[Summaries[T]]
    ) -> Summaries[T]:
        return await self._call("GET", path, page_type, query=query, most_bytes=_MOST_PAGE_BYTES)

    async def _call(
        self,
        method: str,
        path: str,
        answer_type: type[T],
        body: msgspec.Struct | bytes | None = None,
        query: Mapping[str, str] | None = None,
        most_bytes: int = _MOST_BYTES,
    ) -> T:
        call = f"{method} {path} at {self._config.api_url}"
        if self._closed:
            raise PrefactorUnreachableError(f"{call}: the connections are closed")
        content = self._encoded(call, body) if isinstance(body, msgspec.Struct) else body
        headers = self._headers
        if self._sdk_header is not None:
            headers = headers | {"X-Prefactor-SDK": self._sdk_header()}
        # Bulk answers repeat the items of their request.
        limit = most_bytes + 2 * len(content or b"")
        try:
            with unrecorded(), anyio.fail_after(self._config.request_timeout):
                url, timeouts = self._base + path, {"timeout": self._timeouts}
                request = make_request(
                    method, url, params=query, headers=headers, content=content, extensions=timeouts
                )
                answer = await self._transport.handle_async_request(request)
                try:
                    return await self._read(call, answer, answer_type, limit)
                finally:
                    await answer.aclose()  # noqa: ASYNC102 - closes what closes at once
        except (TimeoutError, httpx.TimeoutException):
            raise PrefactorUnreachableError(
                f"{call}: no answer within {self._config.request_timeout:g} s "
                f"(no connection within {self._config.connect_timeout:g} s)"
            ) from None
        except httpx.LocalProtocolError:
            # Its text shows the invalid part of the request, which may be the token.
            raise PrefactorUnreachableError(f"{call}: the request cannot be written") from None
        except (
            httpx.TransportError,
            httpx.InvalidURL,  # an id that fits into no path
            OSError,
            UnicodeError,
            OverflowError,
            RuntimeError,  # the connections were closed during this call
        ) as error:
            text = self._quoted(str(error)) or type(error).__name__
            raise PrefactorUnreachableError(f"{call}: {text}") from None

    def _encoded(self, call: str, body: msgspec.Struct) -> bytes:
        try:
            return msgspec.json.encode(body)
        except Exception as error:
            raise PrefactorValueError(f"{call} cannot be written as JSON: {error}") from None

    async def _read(self, call: str, answer: httpx.Response, answer_type: type[T], limit: int) -> T:
        """Decode the answer. Raises the error in it, or that of its form."""
        status = answer.status_code
        if status >= 400:
            try:
                body = await read_body(answer, _MOST_ERROR_BYTES)
            except UnreadableAnswerError:
                body = b""  # unreadable, so not an error of the API
            raise error_from_answer(
                call,
                status,
                body,
                answer.headers.get("Retry-After"),
                self._config.retry_on_status_codes,
                self._config.api_token,
            )
        try:
            decoded = decode(await read_body(answer, limit), answer_type)
            self._quote_texts(decoded)
            return decoded
        except UnreadableAnswerError as error:
            raise PrefactorContractError(
                f"{call} was answered {status}, and the answer cannot be read: {error}",
                status_code=status,
            ) from None
        except msgspec.DecodeError as error:
            raise PrefactorContractError(
                f"{call} was answered {status}, not in the form of the Prefactor API "
                f"({self._quoted(str(error))}); is api_url right?",
                status_code=status,
            ) from None

    def _quote_texts(self, answer: object) -> None:
        """Quote the texts of ``answer`` that errors and logs show."""
        if isinstance(answer, Details):
            one = cast("Details[object]", answer)
            self._quote_reason(one.details)
            self._quote_control(one.control)
        elif isinstance(answer, Summaries):
            for summary in cast("Summaries[object]", answer).summaries:
                self._quote_reason(summary)
        elif isinstance(answer, Outputs):
            for output in answer.outputs.values():
                self._quote_control(output.control)
                if output.code is not None:
                    output.code = self._quoted(output.code)
                if output.message is not None:
                    output.message = self._quoted(output.message)

    def _quote_reason(self, instance: object) -> None:
        if isinstance(instance, AgentInstanceAnswer) and instance.termination_reason is not None:
            instance.termination_reason = self._quoted(instance.termination_reason)

    def _quote_control(self, control: Control | None) -> None:
        if control is not None and control.reason is not None:
            control.reason = self._quoted(control.reason)

    def _quoted(self, text: str) -> str:
        return quoted(text, self._config.api_token)
