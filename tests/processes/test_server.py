"""The server of a site: how it ends with pages and streams open, and how it runs on trio."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from support.local_api import Api, create, refused
from support.server import on_hypercorn
from support.serving import serving

from prefactor_core.local.server import open_site

SERVE = ("-m", "prefactor_core", "serve", "--port", "0")


def connected(url: str, path: str, *headers: str) -> socket.socket:
    """A connection whose request for ``path`` is sent."""
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    connection = socket.create_connection((host, int(port)), 60)
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_at_once_with_streams_and_pages_open(
    tmp_path: Path, number: int
) -> None:
    with serving(*SERVE, cwd=tmp_path) as server:
        url = server.url()
        streams = [connected(url, "/-/events") for _ in range(8)]
        for stream in streams:
            received = b""
            while b"id: " not in received:
                received += stream.recv(65536)
        # One that waits for its next request, and one within it.
        idle, sending = connected(url, "/"), connected(url, "/", "Content-Length: 9")
        began = time.monotonic()
        assert server.stop(number) == 0
        took = time.monotonic() - began
        # A stream is ended, not cut off.
        for stream in streams:
            received = b""
            while part := stream.recv(65536):
                received += part
            assert received.endswith(b"0\r\n\r\n")
        for connection in (*streams, idle, sending):
            connection.close()
        assert server.rest() == []
    # In less than a second on a machine that has nothing else to do.
    assert took < 5


def test_a_second_interruption_while_the_server_ends_is_no_failure(tmp_path: Path) -> None:
    with serving(*SERVE, cwd=tmp_path) as server:
        connection = connected(server.url(), "/", "Content-Length: 9")
        for _ in range(3):
            server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert server.rest() == []
        connection.close()


@asynccontextmanager
async def served_on_trio(path: Path) -> AsyncGenerator[str]:
    """A site served by hypercorn; its URL."""
    async with open_site(str(path), port=0) as site, anyio.create_task_group() as tasks:
        tasks.start_soon(on_hypercorn, site.app, site.listener, site.stopping)
        yield site.url
        site.stopping.set()


def test_the_api_is_served_by_hypercorn_on_trio(tmp_path: Path) -> None:
    anyio.run(call_on_hypercorn, tmp_path / "runs.db", backend="trio")


async def call_on_hypercorn(path: Path) -> None:
    with anyio.fail_after(60):
        async with served_on_trio(path) as url, httpx.AsyncClient() as http:
            http.base_url = f"{url}api/v1/"
            api = Api(http)
            assert (await api.get("ping")).json()["details"] == {"token_type": "account"}
            instance_id = await api.start()
            root = await api.created(instance_id)
            items = [
                create(instance_id, f"create-{n}", parent_span_id=root["id"]) for n in range(200)
            ]
            outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
            assert {output["status"] for output in outputs.values()} == {"success"}
            await api.done(f"agent_spans/{root['id']}/finish", {"status": "failed"})
            await api.done(f"agent_instance/{instance_id}/finish", {})
            assert (await api.instance(instance_id))["status"] == "complete"
            assert len(await api.spans(instance_id)) == 50
            refused(await api.post("agent_spans", b"["), 400, "bad_request")
            refused(await api.get("agent_instance/unknown"), 404, "not_found")
            foreign = {"Origin": "http://evil.example"}
            refused(await http.post("bulk", json={}, headers=foreign), 403, "forbidden_origin")
            large = [b" " * 1_000_000] * 34
            refused(await http.post("bulk", content=stream(large)), 413, "payload_too_large")
            assert (await http.get(url)).headers["referrer-policy"] == "no-referrer"


def test_the_end_of_hypercorn_ends_a_stream_of_events_and_does_not_cut_it_off(
    tmp_path: Path,
) -> None:
    anyio.run(listen_to_hypercorn, tmp_path / "runs.db", backend="trio")


async def listen_to_hypercorn(path: Path) -> None:
    with anyio.fail_after(60):
        async with httpx.AsyncClient() as http:
            async with served_on_trio(path) as url:
                request = http.build_request("GET", f"{url}-/events")
                lines = (await http.send(request, stream=True)).aiter_lines()
                assert await anext(lines) == "retry: 1000"
            assert [line async for line in lines][-1] == ""


async def stream(parts: list[bytes]) -> AsyncGenerator[bytes]:
    for part in parts:
        yield part
