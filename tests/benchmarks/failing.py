"""APIs that fail, each in its own way, for programs that other modules start."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path

from benchmarks.serving import serve
from benchmarks.wire import make_id
from prefactor_core.local import open_local_prefactor


def _of_api(code: str, message: str) -> tuple[str, bytes]:
    body = {"status": "error", "code": code, "message": message}
    return "application/json", json.dumps(body).encode()


def _of_gateway(title: str) -> tuple[str, bytes]:
    return "text/html", f"<html><body><h1>{title}</h1></body></html>".encode()


_ANSWERS = {
    "401": ("401 Unauthorized", "", *_of_api("bad_authtoken", "Invalid token")),
    "403 of a gateway": ("403 Forbidden", "", *_of_gateway("403 Forbidden")),
    "404 in HTML": ("404 Not Found", "", *_of_gateway("404 Not Found")),
    "413 of a gateway": ("413 Content Too Large", "", *_of_gateway("413 Too Large")),
    "429": (
        "429 Too Many Requests",
        "Retry-After: 30\r\n",
        *_of_api("rate_limited", "Too many requests"),
    ),
    "503": ("503 Service Unavailable", "", *_of_api("unavailable", "Try again later")),
}


_REGISTERED = {
    "status": "success",
    "details": {"id": make_id(1), "status": "pending"},
}
_THEN = "registers, then "


async def _answer(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection in the way of ``kind``."""
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = [line for line in head.split("\r\n") if line.startswith("content-length:")]
            await reader.readexactly(int(length[0].partition(":")[2]) if length else 0)
            if kind.startswith(_THEN) and "/register " in head:
                answer = "200 OK", "", "application/json", json.dumps(_REGISTERED).encode()
            elif kind.endswith("hung"):
                continue
            elif kind == "one byte a second":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                while True:
                    await writer.drain()
                    await asyncio.sleep(1)
                    writer.write(b" ")
            else:
                answer = _ANSWERS[kind.removeprefix(_THEN)]
            status, header, content_type, body = answer
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{header}"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await writer.drain()
    writer.close()


_NEVER_WRITES = """
CREATE VIEW numbers AS
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e12) SELECT i FROM n;
CREATE TRIGGER never BEFORE INSERT ON agent_instances BEGIN SELECT count(*) FROM numbers; END;
"""


def _full_port(stack: AsyncExitStack) -> int:
    """A port whose backlog is full: it neither takes nor refuses a connection."""
    listening = stack.enter_context(socket.socket())
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listening.getsockname())
    return int(listening.getsockname()[1])


@asynccontextmanager
async def open_failing_apis(folder: Path, copies: int) -> AsyncGenerator[dict[str, str]]:
    """Yield the address of each kind of API, by its name; all are closed when the block is left.

    ``{}`` in an address stands for a number below ``copies``, because a database file can be used
    only once. For a full disk and a hanging resolver only the address is given: the program
    itself must bound the size of its files, and replace its resolver.
    """
    async with AsyncExitStack() as stack:
        server = stack.enter_context(serve())
        server.prepare(0)
        addresses = {"200": f"http://127.0.0.1:{server.api_port}"}

        async def listen(kind: str) -> None:
            api = await asyncio.start_server(partial(_answer, kind), "127.0.0.1", 0)
            stack.callback(api.close)
            addresses[kind] = f"http://127.0.0.1:{api.sockets[0].getsockname()[1]}"

        for kind in _ANSWERS:
            await listen(kind)
        bound = stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))  # and does not listen
        addresses["refused"] = f"http://127.0.0.1:{bound.getsockname()[1]}"
        addresses["no connection"] = f"http://127.0.0.1:{_full_port(stack)}"
        await listen("hung")
        addresses["hung in TLS"] = addresses["hung"].replace("http:", "https:")
        await listen("one byte a second")
        for kind in ("hung", "401", "429"):
            await listen(_THEN + kind)
        addresses["resolver hung"] = "http://api.example.com"
        addresses["disk full"] = f"local:{folder}/full-{{}}.db"
        addresses["new file, disk full"] = f"local:{folder}/new-full-{{}}.db"
        addresses["disk hung"] = f"local:{folder}/hung-{{}}.db"
        addresses["file locked"] = f"local:{folder}/locked.db"
        addresses["new file, locked"] = f"local:{folder}/new-locked.db"
        async with open_local_prefactor(str(folder / "locked.db")):
            pass
        for number in range(copies):
            shutil.copy(folder / "locked.db", folder / f"full-{number}.db")
            shutil.copy(folder / "locked.db", folder / f"hung-{number}.db")
            with closing(sqlite3.connect(folder / f"hung-{number}.db")) as database:
                database.executescript(_NEVER_WRITES)
        for name in ("locked.db", "new-locked.db"):
            database = sqlite3.connect(folder / name, isolation_level=None)
            stack.enter_context(closing(database)).execute("BEGIN EXCLUSIVE")
        yield addresses
