"""Answers are read as a stream, bounded in bytes and in time, and the loop gets its turns."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import cycle, repeat
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.api.client import ApiClient
from prefactor_core.api.reading import UnreadableAnswerError, read_body
from prefactor_core.config import HttpClientConfig
from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorContractError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
)

TOKEN = "pf/secret+token-0123456789=="
WAIT = 20
LIMIT = 2 * 1024 * 1024
MOST = 100_000_000
"""Bytes after which the server concludes that the client reads without bound."""

Parts = Callable[[], Iterator[bytes]]


class Server:
    """Answers every request with the same bytes, on a port of the loopback interface.

    ``sent``: how many bytes of the last answer were taken. ``finished``: whether all were.
    ``connections``: how many there have been.
    """

    def __init__(self, parts: Parts, pause: float) -> None:
        self._parts = parts
        self._pause = pause
        self.url = ""
        self.sent = 0
        self.finished = False
        self.connections = 0

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        async with stream:
            try:
                while True:
                    await stream.receive()
                    self.sent, self.finished = 0, False
                    for part in self._parts():
                        await stream.send(part)
                        self.sent += len(part)
                        await anyio.sleep(self._pause)
                        if self.sent > MOST:
                            return
                    self.finished = True
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                return


@asynccontextmanager
async def open_server(parts: Parts, pause: float = 0) -> AsyncGenerator[Server]:
    server = Server(parts, pause)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    server.url = f"http://127.0.0.1:{port}"
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        with anyio.fail_after(WAIT):
            yield server
        group.cancel_scope.cancel()


def make_api(server: Server, **options: Any) -> ApiClient:
    config = HttpClientConfig(api_url=server.url, api_token=TOKEN, **options)
    return ApiClient(config, lambda: "a@1")


def answer(body: bytes, *headers: bytes, status: int = 200) -> bytes:
    lines = [b"HTTP/1.1 %d Said" % status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def gzipped(body: bytes, status: int = 200) -> bytes:
    return answer(gzip.compress(body), b"Content-Encoding: gzip", status=status)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ZEROS = bytes(64 * 1024)


def long_body() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
    yield from repeat(ZEROS, MOST // len(ZEROS))


def endless_chunks() -> Iterator[bytes]:
    yield CHUNKED
    yield from repeat(b"10000\r\n" + ZEROS + b"\r\n")


def tiny_chunks() -> Iterator[bytes]:
    yield CHUNKED
    yield from repeat(b"1\r\n \r\n" * 1000)


def bomb() -> Iterator[bytes]:
    """A hundred thousand bytes of gzip, a hundred million decompressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    zeros = bytes(1_000_000)
    packed = b"".join(packer.compress(zeros) for _ in range(100))
    yield CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    yield b"%x\r\n%b\r\n" % (len(packed), packed)
    yield b"0\r\n\r\n"


def empty_blocks() -> Iterator[bytes]:
    """Endless gzip that decompresses to nothing."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    blocks = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.flush(zlib.Z_FULL_FLUSH) or b"\x00\x00\x00\xff\xff"
    yield CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    yield b"%x\r\n%b\r\n" % (len(blocks), blocks)
    many = block * 5000
    yield from repeat(b"%x\r\n%b\r\n" % (len(many), many))


@pytest.mark.parametrize(
    "parts", [long_body, endless_chunks, tiny_chunks, bomb, empty_blocks], ids=lambda f: f.__name__
)
async def test_an_answer_that_is_too_long_breaks_the_contract(parts: Parts) -> None:
    async with open_server(parts) as server, make_api(server) as api:
        with pytest.raises(PrefactorContractError, match="is too long") as caught:
            await api.ping()
    assert caught.value.status_code == 200
    assert server.sent < LIMIT + 20_000_000  # the buffers of the system take some


@pytest.mark.parametrize("status", [200, 401, 429, 503])
async def test_what_is_too_long_or_not_gzip_keeps_the_class_of_its_status(status: int) -> None:
    kinds: dict[int, type[PrefactorApiError]] = {
        429: PrefactorRateLimitError,
        503: PrefactorServerError,
    }
    for body in (
        gzipped(bytes(4_000_000), status),
        answer(b"x", b"Content-Encoding: gzip", status=status),
    ):
        async with open_server(lambda body=body: iter([body])) as server, make_api(server) as api:
            with pytest.raises(PrefactorApiError) as caught:
                await api.ping()
        assert type(caught.value) is kinds.get(status, PrefactorContractError)
        assert caught.value.status_code == status


@pytest.mark.parametrize("packing", [b"br", b"gzip, gzip", b"deflate", b"zstd"])
async def test_an_answer_that_is_packed_otherwise_breaks_the_contract(packing: bytes) -> None:
    said = answer(b"{}", b"Content-Encoding: " + packing)
    async with open_server(lambda: iter([said])) as server, make_api(server) as api:
        with pytest.raises(PrefactorContractError, match="was not asked for"):
            await api.ping()


async def test_gzip_that_breaks_off_breaks_the_contract() -> None:
    said = answer(gzip.compress(b'{"status": "success"}')[:-12], b"Content-Encoding: gzip")
    async with open_server(lambda: iter([said])) as server, make_api(server) as api:
        with pytest.raises(PrefactorContractError, match="breaks off"):
            await api.ping()


@pytest.mark.parametrize("pack", [answer, gzipped])
async def test_an_answer_up_to_the_limit_is_read_and_its_connection_used_again(
    pack: Callable[[bytes], bytes],
) -> None:
    said = pack(b'{"status": "%b"}' % (b"s" * (LIMIT - 14)))
    async with open_server(lambda: iter([said])) as server, make_api(server) as api:
        for _ in range(3):
            await api.ping()
        assert server.finished
    assert server.connections == 1


def head_without_end() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    yield from (b"X-%d: y\r\n" % number for number in range(MOST // 10))


def endless_line() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX: "
    yield from repeat(b"y" * 1000)


def continues() -> Iterator[bytes]:
    yield from repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


@pytest.mark.parametrize(
    "parts", [head_without_end, endless_line, continues], ids=lambda f: f.__name__
)
async def test_what_comes_before_a_body_is_bounded(parts: Parts) -> None:
    async with open_server(parts) as server, make_api(server) as api:
        with pytest.raises(PrefactorUnreachableError, match="bytes before its body"):
            await api.ping()
    assert not server.finished
    assert server.sent < 20_000_000  # the buffers of the system take some


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nX: ",
        b"",
    ],
    ids=["body", "gzip", "headers", "status line"],
)
async def test_one_byte_at_a_time_is_read_within_the_request_timeout(start: bytes) -> None:
    def trickle() -> Iterator[bytes]:
        yield start or b"H"
        yield from repeat(b" ", 200)

    async with open_server(trickle, pause=0.1) as server:
        async with make_api(server, request_timeout=0.5) as api:
            with pytest.raises(PrefactorApiError):
                await api.ping()
    assert not server.finished
    assert server.sent < len(start) + 100


async def test_the_loop_gets_a_turn_after_each_slice_that_is_unpacked() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    body = bytes(LIMIT)
    async with anyio.create_task_group() as group:
        group.start_soon(count)
        await anyio.lowlevel.checkpoint()
        before = turns
        # Nothing waits in here: the answer is complete already.
        packed = httpx.Response(
            200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(body))
        )
        assert await read_body(packed, LIMIT) == body
        slices = LIMIT // (256 * 1024)
        assert turns - before >= slices // 2  # trio runs two ready tasks in any order
        before = turns
        tiny = httpx.Response(200, stream=Tiny(10_000))
        assert await read_body(tiny, LIMIT) == b"x" * 10_000
        assert turns - before >= 10_000 // 32 // 2
        group.cancel_scope.cancel()


class Tiny(httpx.AsyncByteStream):
    """A body in parts of one byte."""

    def __init__(self, parts: int) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._parts):
            yield b"x"


@given(
    body=st.binary(max_size=3000),
    sizes=st.lists(st.integers(1, 700), min_size=1),
    limit=st.integers(0, 3000),
    packed=st.booleans(),
)
async def test_a_body_in_whatever_parts_is_read_whole_or_refused(
    body: bytes, sizes: list[int], limit: int, packed: bool
) -> None:
    sent = gzip.compress(body) if packed else body

    class Parts(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            at = 0
            for size in cycle(sizes):
                if at >= len(sent):
                    return
                yield sent[at : at + size]
                at += size

    headers = {"Content-Encoding": "gzip"} if packed else {}
    answer = httpx.Response(200, headers=headers, stream=Parts())
    try:
        assert await read_body(answer, limit) == body
        assert len(body) <= limit + 64
    except UnreadableAnswerError:
        parts = len(sent) // min(sizes) + 1
        assert max(len(body), len(sent) + 64 * parts) > limit
