"""read_body: the body of an answer, as a stream, unpacked and bounded."""

from __future__ import annotations

import zlib
from typing import Final

import anyio.lowlevel
import httpx

_SLICE: Final = 256 * 1024
"""Bytes that are unpacked in one turn of the loop."""

_CHUNKS: Final = 32
"""Parts of an answer that are taken in one turn of the loop, however small they are."""


class UnreadableAnswerError(Exception):
    """The body is too long, or packed in a way that cannot be read."""


class _Plain:
    """Takes a body as it comes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.parts: list[bytes] = []
        self._length = 0

    async def add(self, chunk: bytes) -> None:
        self._take(chunk)

    def end(self) -> bytes:
        return b"".join(self.parts)

    def _take(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > self.limit:
            raise too_long(self.limit)
        self.parts.append(part)


class _Gzip(_Plain):
    """Unpacks a body, slice by slice."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._packed = 0

    async def add(self, chunk: bytes) -> None:
        self._packed += len(chunk)
        if self._packed > self.limit:
            raise too_long(self.limit)  # blocks that unpack to nothing
        while chunk and not self._unpacker.eof:
            try:
                self._take(self._unpacker.decompress(chunk, _SLICE))
            except zlib.error as error:
                raise UnreadableAnswerError(f"it is not gzip ({error})") from None
            chunk = self._unpacker.unconsumed_tail
            if chunk:
                await anyio.lowlevel.cancel_shielded_checkpoint()

    def end(self) -> bytes:
        if not self._unpacker.eof:
            raise UnreadableAnswerError("its gzip breaks off")
        return super().end()


def too_long(limit: int) -> UnreadableAnswerError:
    """The error for a body of more than ``limit`` bytes."""
    return UnreadableAnswerError(f"it has more than {limit:,} bytes")


async def read_body(answer: httpx.Response, limit: int) -> bytes:
    """The body of ``answer``. The loop gets a turn after each slice of work.

    Raises :class:`UnreadableAnswerError` if it has more than ``limit`` bytes, packed or unpacked,
    or is packed otherwise than with gzip; and what httpx raises.
    """
    packing = answer.headers.get("Content-Encoding", "").strip().lower()
    body = _Gzip(limit) if packing in ("gzip", "x-gzip") else _Plain(limit)
    failure: UnreadableAnswerError | None = None
    if packing not in ("", "identity", "gzip", "x-gzip"):
        failure = UnreadableAnswerError("it is packed in a way that was not asked for")
    elif (length := answer.headers.get("Content-Length", "")).isdigit() and int(length) > limit:
        failure = too_long(limit)
    if failure is not None:
        raise failure
    chunks = 0
    try:
        async for chunk in answer.aiter_raw():
            chunks += 1
            if failure is None:
                try:
                    await body.add(chunk)
                except UnreadableAnswerError as error:
                    # Not raised in here: the generators of httpx and httpcore would be left to
                    # the garbage collector. The next read fails, and ends them.
                    failure = error
                    answer.extensions.get("give_up", _nothing)()
            if chunks % _CHUNKS == 0:
                # Cancelled is the next read. In here that would leave the generators, too.
                await anyio.lowlevel.cancel_shielded_checkpoint()
    except httpx.TransportError:
        if failure is None:
            raise
    if failure is not None:
        raise failure
    return body.end()


def _nothing() -> None:
    """An answer of this process: it is there already."""
