"""Addresses of Redis servers, as api_url."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core import PrefactorCoreConfig, PrefactorValueError
from prefactor_core.config import HttpClientConfig
from prefactor_core.config.redis import RedisAddress

SECRET = "s3cr3t/@:?#x"


def test_an_address_has_the_parts_of_its_server() -> None:
    assert HttpClientConfig("redis://example.com").redis == RedisAddress(host="example.com")
    assert HttpClientConfig("rediss://agent@[::1]:7000/3?prefix=acme").redis == RedisAddress(
        host="::1", port=7000, username="agent", database=3, prefix="acme", tls=True
    )
    assert HttpClientConfig("unix:///run/redis.sock?db=2").redis == RedisAddress(
        path="/run/redis.sock", database=2
    )
    tls = HttpClientConfig("rediss://h?ssl_ca_certs=/ca.pem&ssl_certfile=/c&ssl_keyfile=/k").redis
    assert tls == RedisAddress(host="h", tls=True, ca_certs="/ca.pem", certfile="/c", keyfile="/k")
    assert HttpClientConfig("http://127.0.0.1").redis is None


@given(
    password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
    user=st.sampled_from(["", "agent"]),
    rest=st.sampled_from(["", "/2", "?prefix=x"]),
)
def test_a_password_is_moved_to_the_token_and_is_shown_nowhere(
    password: str, user: str, rest: str
) -> None:
    config = HttpClientConfig(f"redis://{user}:{quote(password, safe='')}@host:7{rest}")
    assert config.api_token == password
    assert config.api_url == f"redis://{user}{'@' if user else ''}host:7{rest}"
    assert HttpClientConfig(config.api_url, config.api_token) == config
    assert repr(config) == repr(HttpClientConfig(config.api_url))
    assert config.redis is not None
    assert str(config.redis) == "redis://host:7"


def test_the_token_of_the_environment_is_not_given_to_a_redis_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFACTOR_API_TOKEN", "of-the-api")
    monkeypatch.setenv("PREFACTOR_API_URL", f"redis://a:{quote(SECRET, safe='')}@host")
    config = PrefactorCoreConfig.from_env()
    assert (config.http_config.api_url, config.http_config.api_token) == ("redis://a@host", SECRET)
    assert PrefactorCoreConfig.from_env(api_url="redis://host").http_config.api_token == ""


REFUSED = [
    ("redis://", "api_url must have a host, and a port if any"),
    ("redis://:6379", "api_url must have a host, and a port if any"),
    ("redis://host:port", "api_url is no address of a Redis server"),
    ("redis://host:0", "api_url must have a host, and a port if any"),
    ("redis://host/name", "the database in api_url must be a number"),
    ("redis://host/-1", "the database in api_url must be a number"),
    ("redis://host?prefix=", "the prefix in api_url must be 1 to 64 letters"),
    ("redis://host?prefix=a%20b", "the prefix in api_url must be 1 to 64 letters"),
    ("redis://host?colour=red", "api_url has an option that Redis addresses lack"),
    ("redis://host?db=1&db=2", "api_url has an option that Redis addresses lack"),
    ("redis://host?ssl_ca_certs=x", "api_url has options for TLS: it must begin with rediss://"),
    ("rediss://host?ssl_keyfile=x", "api_url has ssl_keyfile, and no ssl_certfile"),
    ("unix://", "api_url names no socket"),
    ("unix://host/path", "api_url names no socket"),
]


@pytest.mark.parametrize(("url", "message"), REFUSED)
def test_an_address_that_names_no_server_is_refused(url: str, message: str) -> None:
    with pytest.raises(PrefactorValueError, match=re.escape(message)):
        HttpClientConfig(url)


@pytest.mark.parametrize("rest", ["host:port", "host/name", "host?x=1", "host?prefix=", ""])
def test_no_error_shows_a_password(rest: str) -> None:
    with pytest.raises(PrefactorValueError) as caught:
        HttpClientConfig(f"redis://user:hunter2@{rest}")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)
