"""What a traced function returns before its work is done is handed on as what records the rest.

A coroutine stays a coroutine, a generator a generator, and a future the same object. Any other
awaitable or iterator, such as the stream of a client for models, becomes a proxy of it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import lru_cache, partial
from inspect import CO_ITERABLE_COROUTINE
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, TypeAlias, cast

from prefactor_core.agent.traced_call import Call, Stream
from prefactor_core.agent.traced_generator import async_generator_function, generator_function

DONE: Final = frozenset({bool, bytes, dict, float, int, list, set, str, tuple, type(None)})
"""The types of most of what functions return, of which nothing is handed on."""

HandOn: TypeAlias = Callable[[Call, Any], Any]


def hand_on(call: Call, value: Any) -> Any:
    """What the caller gets of a call that has returned ``value``; to be called in its block."""
    if type(value) in DONE or not call.is_open or (way := _way_of(value)) is None:
        call.returns(value)
        return value
    call.goes_on()
    return way(call, value)


def _way_of(value: object) -> HandOn | None:
    """How ``value`` is handed on; None if there is nothing to wait for in it.

    That is told by its class alone: attributes that an object makes up say nothing.
    """
    kind = type(value)
    if kind is CoroutineType:
        return _coroutine
    if kind is GeneratorType:
        code = cast("GeneratorType[Any, Any, Any]", value).gi_code
        is_awaited = code.co_flags & CO_ITERABLE_COROUTINE
        return _coroutine if is_awaited else _generator
    if kind is AsyncGeneratorType:
        return _async_generator
    names = _members_of(kind)
    if "_asyncio_future_blocking" in names or _is_future_of_thread(kind):
        return _future
    if "__await__" in names:
        # One that can do more stays what it is: the request of an HTTP client, say.
        is_coroutine = issubclass(kind, Coroutine) and "__aenter__" not in names
        return _coroutine if is_coroutine else _proxy
    # Files iterate over their lines, but that is not what they are returned for.
    if ("__next__" in names or "__anext__" in names) and "read" not in names:
        return _proxy
    return None


def _members_of(kind: type[object]) -> dict[str, Any]:
    """What a class has; not what it says that it has not."""
    members: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        members |= base.__dict__
    return {name: member for name, member in members.items() if member is not None}


def _is_future_of_thread(kind: type[object]) -> bool:
    futures = sys.modules.get("concurrent.futures")  # it takes its time to import
    return futures is not None and issubclass(kind, futures.Future)


def _future(call: Call, future: Any) -> Any:
    if future.done():
        _future_is_done(call, future)
    else:
        future.add_done_callback(partial(_future_is_done, call))
    return future


def _future_is_done(call: Call, future: Any) -> None:
    if future.cancelled():
        call.ends(GeneratorExit())
    # Not exception(): asyncio warns of an error that nobody has asked for.
    elif (error := future._exception) is not None:
        call.ends(error)
    else:
        call.returns(future.result())


class _Unbegun:
    """A coroutine or generator of a call, until it is begun; the call ends if it never is."""

    def __init__(self, call: Stream | Call, value: Any) -> None:
        self._call: Stream | Call | None = call
        self._value: Any = value

    def begin(self) -> tuple[Any, Callable[[], Any]]:
        call, value = self._call, self._value
        self._call = self._value = None
        return call, lambda: value

    def __del__(self) -> None:
        if self._call is not None:
            if not isinstance(self._value, AsyncGeneratorType):
                self._value.close()  # or Python would warn of it, and not only of its substitute
            self._call.ends(GeneratorExit())


def _coroutine(call: Call, value: Any) -> Any:
    return _named_as(value, _await(_Unbegun(call, value)))


async def _await(unbegun: _Unbegun) -> Any:
    call, value = unbegun.begin()
    with call:
        return hand_on(call, await value())


def _generator(call: Call, value: Any) -> Any:
    unbegun = _Unbegun(Stream(call.calls, call.span), value)
    return _named_as(value, generator_function(unbegun.begin)())


def _async_generator(call: Call, value: Any) -> Any:
    unbegun = _Unbegun(Stream(call.calls, call.span), value)
    return _named_as(value, async_generator_function(unbegun.begin)())


def _named_as(value: Any, substitute: Any) -> Any:
    """``substitute`` shows the name of what it stands for: in warnings, and as a task."""
    substitute.__name__ = getattr(value, "__name__", type(value).__name__)
    substitute.__qualname__ = getattr(value, "__qualname__", type(value).__qualname__)
    return substitute


def _proxy(call: Call, value: object) -> Any:
    proxy = _proxy_of(cast("Hashable", type(value)))
    gives_items = hasattr(proxy, "__next__") or hasattr(proxy, "__anext__")
    return proxy(Stream(call.calls, call.span) if gives_items else call, value)


class _Proxy:
    """Does what ``value`` does, and records what comes out of it.

    Its class, one for each class of values, has the special methods that this has.
    """

    __slots__ = ("__weakref__", "prefactor_begun_", "prefactor_call_", "prefactor_value_")

    prefactor_value_: Any
    prefactor_call_: Call
    prefactor_begun_: bool

    def __init__(self, call: Call, value: Any) -> None:
        object.__setattr__(self, "prefactor_value_", value)
        object.__setattr__(self, "prefactor_call_", call)
        object.__setattr__(self, "prefactor_begun_", False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prefactor_value_, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.prefactor_value_, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.prefactor_value_, name)

    def __del__(self) -> None:
        _is_forked(self)


def _begin(proxy: _Proxy) -> tuple[Any, Any]:
    object.__setattr__(proxy, "prefactor_begun_", True)
    return proxy.prefactor_call_, proxy.prefactor_value_


def _is_forked(proxy: _Proxy, error: BaseException | None = None) -> None:
    """Nobody asks for more. What nobody has asked for anything has done what it was to do."""
    stream = proxy.prefactor_call_
    if stream.is_open:
        stream.ends(error or (GeneratorExit() if proxy.prefactor_begun_ else None))


def _next(self: _Proxy) -> Any:
    stream, value = _begin(self)
    if not stream.is_open:
        return next(value)
    stream.enters()
    try:
        item = next(value)
    except StopIteration:
        stream.ends(None)
        raise
    except BaseException as error:
        stream.ends(error)
        raise
    finally:
        stream.leaves()
    stream.add(item)
    return item


async def _anext(self: _Proxy) -> Any:
    stream, value = _begin(self)
    if not stream.is_open:
        return await anext(value)
    stream.enters()
    try:
        item = await anext(value)
    except StopAsyncIteration:
        stream.ends(None)
        raise
    except BaseException as error:
        stream.ends(error)
        raise
    finally:
        stream.leaves()
    stream.add(item)
    return item


def _await_proxy(self: _Proxy) -> Any:
    stream, value = _begin(self)
    return _await_value(self).__await__() if stream.is_open else value.__await__()


async def _await_value(proxy: _Proxy) -> Any:
    # Nobody else may have it: of what `await` is given, it keeps the iterator only.
    stream = proxy.prefactor_call_
    with stream:
        return hand_on(stream, await proxy.prefactor_value_)


def _step(name: str) -> Callable[..., Any]:
    """How a task drives a coroutine: by its ``send()`` and ``throw()``."""

    def step(self: _Proxy, *args: Any) -> Any:
        stream, value = _begin(self)
        if not stream.is_open:
            return getattr(value, name)(*args)
        stream.enters()
        try:
            return getattr(value, name)(*args)
        except StopIteration as stop:
            stream.returns(stop.value)
            raise
        except BaseException as error:
            stream.ends(error)
            raise
        finally:
            stream.leaves()

    return step


def _itself(self: _Proxy) -> Any:
    return self


def _enter(self: _Proxy) -> Any:
    value = self.prefactor_value_
    entered = value.__enter__()
    return self if entered is value else entered


async def _aenter(self: _Proxy) -> Any:
    value = self.prefactor_value_
    entered = await value.__aenter__()
    return self if entered is value else entered


def _exit(self: _Proxy, *error: Any) -> Any:
    try:
        return self.prefactor_value_.__exit__(*error)
    finally:
        _is_forked(self, error[1])


async def _aexit(self: _Proxy, *error: Any) -> Any:
    try:
        return await self.prefactor_value_.__aexit__(*error)
    finally:
        _is_forked(self, error[1])


def _closing(name: str) -> Callable[..., Any]:
    def close(self: _Proxy) -> Any:
        closed: object = getattr(self.prefactor_value_, name)()
        if "__await__" in _members_of(type(closed)):
            return _wait_and_leave(self, cast("Awaitable[Any]", closed))
        _is_forked(self)
        return closed

    return close


async def _wait_and_leave(proxy: _Proxy, closed: Awaitable[Any]) -> Any:
    try:
        return await closed
    finally:
        _is_forked(proxy)


_RECORDED: Final[dict[str, Callable[..., Any]]] = {
    "__next__": _next,
    "__anext__": _anext,
    "__await__": _await_proxy,
    "__enter__": _enter,
    "__aenter__": _aenter,
    "__exit__": _exit,
    "__aexit__": _aexit,
    "close": _closing("close"),
    "aclose": _closing("aclose"),
}

# What a class has of its own, whatever stands behind it.
_OF_CLASSES: Final = {
    *("__annotations__", "__class__", "__class_getitem__", "__del__", "__delattr__", "__dict__"),
    *("__getattr__", "__getattribute__", "__init__", "__init_subclass__", "__new__"),
    *("__orig_bases__", "__parameters__", "__setattr__", "__slots__", "__subclasshook__"),
    *("__set_name__", "__weakref__"),
}


@lru_cache(maxsize=128)
def _proxy_of(kind: Any) -> type[_Proxy]:
    has = _members_of(kind)
    members: dict[str, Any] = {name: _RECORDED[name] for name in has.keys() & _RECORDED.keys()}
    if issubclass(cast("type[object]", kind), Coroutine):
        members |= {name: _step(name) for name in ("send", "throw")}
    if "__next__" in has:
        members["__iter__"] = _itself
    if "__anext__" in has:
        members["__aiter__"] = _itself
    for name in has.keys() - members.keys() - _OF_CLASSES:
        if name.startswith("__") and name.endswith("__"):
            members[name] = _forwarding(name) if callable(has[name]) else has[name]
    if "__hash__" not in has:
        members["__hash__"] = None
    # So that isinstance() takes it for what it stands for.
    members["__class__"] = property(lambda self: kind)
    members["__slots__"] = ()
    return type(kind.__name__, (_Proxy,), members)


def _forwarding(name: str) -> Callable[..., Any]:
    def forward(self: _Proxy, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.prefactor_value_, name)(*args, **kwargs)

    return forward
