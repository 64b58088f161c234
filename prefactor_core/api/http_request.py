"""A request of httpx that may be cancelled while it is written."""

from __future__ import annotations

from typing import Any, Self

import httpx


class _Content(httpx.AsyncByteStream):
    """The body of a request, in one part. Not the generator of httpx: trio warns of one that a
    cancellation has left unfinished."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._is_sent = False

    def __aiter__(self) -> Self:
        return type(self)(self._content)

    async def __anext__(self) -> bytes:
        if self._is_sent:
            raise StopAsyncIteration
        self._is_sent = True
        return self._content


def make_request(method: str, url: str, *, content: bytes | None, **options: Any) -> httpx.Request:
    """Make a request for a transport of httpx; ``options`` are those of :class:`httpx.Request`."""
    request = httpx.Request(method, url, content=content, **options)
    request.stream = _Content(content or b"")
    return request
