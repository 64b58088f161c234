"""The server that the other tests run: it keeps what it acknowledged, and waits while paused."""

from __future__ import annotations

import socket

import pytest
from support.redis_server import RedisError, RedisServerProcess, redis_server


def test_a_server_that_is_killed_has_all_that_it_acknowledged(redis: RedisServerProcess) -> None:
    for number in range(200):
        redis.cli("XADD", "stream", "*", "n", number)
    redis.restart()
    entries = redis.cli("XRANGE", "stream", "-", "+")
    assert [fields for _, fields in entries] == [["n", str(number)] for number in range(200)]
    redis.kill()
    with pytest.raises(OSError, match="refused"):
        redis.cli("PING")
    redis.start()
    assert redis.cli("XLEN", "stream") == 200


def test_a_paused_server_takes_connections_and_answers_when_it_goes_on(
    redis: RedisServerProcess,
) -> None:
    redis.pause()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(redis.socket))
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        redis.resume()
        connection.settimeout(60)
        assert connection.recv(10) == b"+PONG\r\n"


def test_options_set_up_the_server_and_errors_are_raised() -> None:
    with redis_server("--maxmemory", "2mb") as server:
        assert server.cli("CONFIG", "GET", "maxmemory") == ["maxmemory", "2097152"]
        assert server.cli("GET", "missing") is None
        with pytest.raises(RedisError, match="OOM"):
            for number in range(100):
                server.cli("SET", number, b"x" * 100_000)
