"""read_body: the body of an answer, read as a stream, decompressed and bounded."""

from __future__ import annotations

import zlib
from typing import Final

import anyio.lowlevel
import httpx

_SLICE: Final = 256 * 1024
"""The most bytes that are decompressed in one turn of the loop."""

_CHUNKS: Final = 32
"""The most parts of an answer that are read in one turn of the loop, however small they are."""

_LEAST: Final = 64
"""The bytes that a part counts at least: a small part takes time, too."""


class UnreadableAnswerError(Exception):
    """The body is too long, or compressed in a way that cannot be read."""


class _Plain:
    """Collects a body that is not compressed."""

    def __init__(self, limit: int) -> None:
        self._taken = _Bytes(limit)
        self._parts: list[bytes] = []

    async def add(self, chunk: bytes) -> None:
        self._taken.count(chunk)
        self._parts.append(chunk)

    def end(self) -> bytes:
        return b"".join(self._parts)


class _Gzip:
    """Decompresses a body, slice by slice."""

    def __init__(self, limit: int) -> None:
        self._packed = _Bytes(limit)  # some blocks decompress to nothing
        self._unpacked = _Plain(limit)
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)

    async def add(self, chunk: bytes) -> None:
        self._packed.count(chunk)
        while chunk and not self._unpacker.eof:
            try:
                part = self._unpacker.decompress(chunk, _SLICE)
            except zlib.error as error:
                raise UnreadableAnswerError(f"it is not gzip ({error})") from None
            if part:
                await self._unpacked.add(part)
            chunk = self._unpacker.unconsumed_tail
            if chunk:
                await anyio.lowlevel.cancel_shielded_checkpoint()

    def end(self) -> bytes:
        if not self._unpacker.eof:
            raise UnreadableAnswerError("its gzip breaks off")
        return self._unpacked.end()


class _Bytes:
    """Counts the bytes of parts; raises :class:`UnreadableAnswerError` beyond a limit."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def count(self, part: bytes) -> None:
        self._left -= max(len(part), _LEAST)
        if self._left < -_LEAST:  # the last part may be a small one
            raise UnreadableAnswerError("it is too long")


async def read_body(answer: httpx.Response, limit: int) -> bytes:
    """Read the body of ``answer``. The loop gets a turn after each slice of work.

    Raises :class:`UnreadableAnswerError` for a body of (about) more than ``limit`` bytes,
    compressed or not, and for a compression other than gzip; and the errors of httpx.
    """
    packing = answer.headers.get("Content-Encoding", "").strip().lower()
    body = _Gzip(limit) if packing in ("gzip", "x-gzip") else _Plain(limit)
    failure: UnreadableAnswerError | None = None
    if packing not in ("", "identity", "gzip", "x-gzip"):
        failure = UnreadableAnswerError("it is packed in a way that was not asked for")
    elif (length := answer.headers.get("Content-Length", "")).isdigit() and int(length) > limit:
        failure = UnreadableAnswerError("it is too long")
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
                    # To raise here would leave the generators of httpx and httpcore to the
                    # garbage collector. Instead the next read fails, and ends them.
                    failure = error
                    answer.extensions.get("give_up", _nothing)()
            if chunks % _CHUNKS == 0:
                # Shielded for the same reason: a cancellation ends the next read.
                await anyio.lowlevel.cancel_shielded_checkpoint()
    except httpx.TransportError:
        if failure is None:
            raise
    if failure is not None:
        raise failure
    return body.end()


def _nothing() -> None:
    """An in-process answer is whole already."""
