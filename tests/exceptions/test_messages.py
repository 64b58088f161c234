"""No message shows an argument that may be a payload or a secret."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, cast

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import for_each
from support.harness import AGENT, make_config, open_faulty_api

import prefactor_core
from prefactor_core import (
    AgentInstanceHandle,
    HttpClientConfig,
    InMemoryQueue,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    QueueConfig,
    SchemaRegistry,
    SpanContext,
    SpanContextStack,
    SyncPrefactorClient,
    TaskExecutor,
    open_prefactor,
)
from prefactor_core.exceptions import in_message, type_in_message, with_article
from prefactor_core.local import Faults, open_local_prefactor
from prefactor_core.payloads.secret_str import SecretStr

pytestmark = pytest.mark.virtual_time

CANARY = "the canary 7f3a"
# Names are shown.
NAMES = {"name", "schema_name", "create_client_call"}


class Shown:
    """An object whose repr shows all its fields."""

    def __repr__(self) -> str:
        return f"Shown({CANARY})"

    __str__ = __repr__


class Text(str):
    __slots__ = ()


WRONG: list[Any] = [
    *({"password": CANARY}, {CANARY: 1}, {CANARY: object()}, [CANARY], (CANARY, 1), {CANARY}),
    *(CANARY.encode(), f"a text, with the {CANARY} in it", f"{'x' * 50}{CANARY}", Text(CANARY)),
    *(SecretStr(CANARY), Shown(), [Shown()], {"a": Shown()}, ValueError(CANARY), lambda: CANARY),
]

# The other arguments of a call with one wrong argument.
RIGHT: dict[str, Any] = {
    **AGENT,
    "schema_name": "agent:tool",
    "name": "agent:other",
    "schema": {"type": "object"},
    "params_schema": {"type": "object"},
    "external_id": "v1",
    "create_client_call": "Adapter.create_client()",
    "score": {"value": 1},
    "api_url": "http://prefactor.invalid",
    "api_token": "x",
    "value": "x",
    "labels": "contact_information",
    "callback": print,
    "function": print,
    "key": "key-of-a-call",
    "patterns": "ssn",
    "path": ":memory:",
}

# These wait, or end an object that the others need.
LEFT_OUT = {"initialize", "close", "flush", "get", "put", "drain", "aclose", "config", "enter"}


def chain(error: BaseException | None) -> Iterator[BaseException]:
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    if isinstance(function, type) and issubclass(function, msgspec.Struct):
        names = function.__struct_fields__
        return [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in names]
    return list(inspect.signature(function).parameters.values())


def arguments(
    function: Callable[..., Any], wrong_name: str, wrong: object, right: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The call of ``function`` with one wrong argument, and the others it needs."""
    given: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in parameters_of(function):
        name, needed = parameter.name, parameter.default is parameter.empty
        if name == wrong_name:
            value = wrong
        elif needed and parameter.kind is not parameter.VAR_KEYWORD:
            value = right.get(name, wrong)
        else:
            continue
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            given.append(value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            named["other"] = value
        else:
            named[name] = value
    return given, named


async def call(function: Callable[..., Any], given: list[Any], named: dict[str, Any]) -> None:
    """Call it, and use the result: a decorator, an awaitable or a scope."""
    result = function(*given, **named)
    if isinstance(result, PrefactorCoreClient | SyncPrefactorClient | TaskExecutor):
        return
    if callable(result) and getattr(function, "__name__", "") in ("traced", "span_type"):
        result = result(lambda query: query)
    if inspect.isawaitable(result):
        await result
    elif hasattr(result, "__aenter__"):
        async with result:
            pass
    elif hasattr(result, "__enter__"):
        with result:
            pass


def methods(target: object) -> dict[str, Callable[..., Any]]:
    return {
        f"{type(target).__name__}.{name}": cast("Callable[..., Any]", getattr(target, name))
        for name, function in inspect.getmembers_static(type(target))
        if not name.startswith("_") and name not in LEFT_OUT and inspect.isroutine(function)
    }


def functions() -> dict[str, Callable[..., Any]]:
    """The exports of the package, without errors and plain structs."""
    registry = SchemaRegistry()
    found: dict[str, Callable[..., Any]] = {
        name: getattr(prefactor_core, name)
        for name in prefactor_core.__all__
        if inspect.isfunction(getattr(prefactor_core, name))
    }
    return {
        **found,
        **methods(registry),
        **methods(SpanContextStack()),
        **{cls.__name__: cls for cls in (PrefactorCoreConfig, HttpClientConfig, QueueConfig)},
        **{cls.__name__: cls for cls in (Faults, TaskExecutor, AgentInstanceHandle, SpanContext)},
        "open_local_prefactor": open_local_prefactor,
        "from_env": PrefactorCoreConfig.from_env,
        "replace": PrefactorCoreConfig(http_config=HttpClientConfig(api_url="local:x")).replace,
        "put_nowait": InMemoryQueue().put_nowait,
    }


PARAMETERS = [
    (name, parameter)
    for name, function in functions().items()
    for parameter in map(attrgetter("name"), parameters_of(function))
    if (name, parameter) != ("open_local_prefactor", "path")  # any text is one
]


async def check_all(
    function: Callable[..., Any], name: str, right: dict[str, Any], caplog: Any
) -> list[str]:
    """The places that show the canary, given as this argument."""
    found: list[str] = []
    for wrong in WRONG:
        if name in NAMES and isinstance(wrong, str):
            continue
        try:
            given, named = arguments(function, name, wrong, right)
            await call(function, given, named)
        except Exception as error:
            leaks = [repr(each) for each in chain(error) if CANARY in f"{each} {each!r}"]
            found += [f"{name}={type(wrong).__name__}: {text}" for text in leaks]
        if CANARY in caplog.text:
            found.append(f"{name}={type(wrong).__name__}: logged {caplog.text}")
        caplog.clear()
    return found


async def test_no_function_shows_its_arguments(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    found: list[str] = []
    with anyio.fail_after(60):
        for name, parameter in PARAMETERS:
            shown = await check_all(functions()[name], parameter, RIGHT, caplog)
            found += [f"{name}: {text}" for text in shown]
    assert found == []


METHODS = [
    *(PrefactorCoreClient, AgentInstanceHandle, SpanContext),
]


@pytest.mark.parametrize("kind", METHODS)
async def test_no_method_shows_its_arguments(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    found: list[str] = []
    with anyio.fail_after(60):
        async with open_faulty_api() as api, open_prefactor(make_config(), asgi_app=api) as client:
            names = [
                (name, parameter)
                for name, member in inspect.getmembers_static(kind)
                if not name.startswith("_") and name not in LEFT_OUT and inspect.isroutine(member)
                for parameter in inspect.signature(getattr(kind, name)).parameters
                if parameter not in ("self", "cls")
            ]
            assert len(names) > 5
            for name, parameter in names:
                with contextlib.suppress(prefactor_core.PrefactorCoreError):
                    async with client.agent_instance(**AGENT) as instance:
                        await instance.start()
                        span = instance.span("agent:tool")
                        async with span:
                            right = {**RIGHT, "instance_id": instance.id, "span_id": span.id}
                            targets = {
                                PrefactorCoreClient: client,
                                AgentInstanceHandle: instance,
                                SpanContext: span,
                            }
                            function = getattr(targets[kind], name)
                            found += [
                                f"{name}: {text}"
                                for text in await check_all(function, parameter, right, caplog)
                            ]
    assert found == []


@given(st.text(alphabet="abc .\n-/é", max_size=60))
def test_of_a_text_only_a_word_is_shown(text: str) -> None:
    is_word = len(text) <= 36 and (not text.strip() or not set(text) & set(" \n"))
    assert in_message(text) == (repr(text) if is_word else f"a text of length {len(text)}")


@for_each(
    ("value", "shown"),
    [
        *((value, repr(value)) for value in (None, True, 0, -5, 2.5, float("nan"), 1 << 63)),
        *(
            (1 << 10_000, "int"),
            ([1], "list"),
            (b"ab", "bytes"),
            (Text("ab"), "a text of length 2"),
        ),
        *((dict, "the class dict"), (Shown(), "Shown"), (Shown, "the class Shown")),
    ],
)
def test_of_a_value_only_a_number_is_shown(value: object, shown: str) -> None:
    assert in_message(value) == shown


@for_each(
    ("noun", "shown"),
    [
        *(("int", "an int"), ("object", "an object"), ("Exception", "an Exception")),
        *(("list", "a list"), ("'agent:run'", "an 'agent:run'"), ('"it\'s"', 'an "it\'s"')),
        *(("'llm'", "a 'llm'"), ("UUID", "a UUID"), ("", "a ")),
    ],
)
def test_a_noun_has_the_article_of_its_first_letter(noun: str, shown: str) -> None:
    assert with_article(noun) == shown
    assert type_in_message(5) == "an int"
