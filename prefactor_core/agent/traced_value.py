"""Return values that are not done yet: they are wrapped, so that their work is recorded too.

A coroutine stays a coroutine, a generator a generator, and a future the same object. Any other
awaitable or iterator, such as the stream of an LLM client, becomes a proxy of it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import lru_cache, partial
from inspect import CO_ITERABLE_COROUTINE
from types import AsyncGeneratorType, CoroutineType, GeneratorType, TracebackType
from typing import Any, Final, TypeAlias, cast

from prefactor_core.agent.traced_call import Call, Stream
from prefactor_core.agent.traced_generator import async_generator_function, generator_function

# Common types of return values that have no work left to do.
_DONE: Final = frozenset({bool, bytes, dict, float, int, list, set, str, tuple, type(None)})

Wrap: TypeAlias = Callable[[Call, Any], Any]


def complete_or_wrap(call: Call, value: Any) -> Any:
    """Complete a call that has returned ``value``, or keep it open until the work of ``value`` is
    done. Gives the object that the caller receives. To be called in the block of ``call``."""
    if type(value) in _DONE or not call.is_open or (wrap := _wrap_for(value)) is None:
        call.complete(value)
        return value
    call.continues()
    return wrap(call, value)


def _wrap_for(value: object) -> Wrap | None:
    """The function that wraps ``value``; None if it has no work left to do.

    Only its class decides: an object can make up any attribute.
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
        # An object that can do more stays as it is: the request of an HTTP client, for example.
        is_coroutine = issubclass(kind, Coroutine) and "__aenter__" not in names
        return _coroutine if is_coroutine else _proxy
    # Files iterate over their lines, but they are not returned for that.
    if ("__next__" in names or "__anext__" in names) and "read" not in names:
        return _proxy
    return None


def _members_of(kind: type[object]) -> dict[str, Any]:
    """The attributes of a class, without those that it sets to None (it does not have these)."""
    members: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        members |= base.__dict__
    return {name: member for name, member in members.items() if member is not None}


def _is_future_of_thread(kind: type[object]) -> bool:
    futures = sys.modules.get("concurrent.futures")  # not imported here: the import is slow
    return futures is not None and issubclass(kind, futures.Future)


def _future(call: Call, future: Any) -> Any:
    if future.done():
        _future_is_done(call, future)
    else:
        future.add_done_callback(partial(_future_is_done, call))
    return future


def _future_is_done(call: Call, future: Any) -> None:
    if future.cancelled():
        call.end(GeneratorExit())
    # Not exception(): after it, asyncio would not warn of an error that nobody retrieves.
    elif (error := future._exception) is not None:
        call.end(error)
    else:
        call.complete(future.result())


class _NotStarted:
    """A coroutine or generator that has not been started. If it never is, the call ends."""

    def __init__(self, call: Stream | Call, value: Any) -> None:
        self._call: Stream | Call | None = call
        self._value: Any = value

    def start(self) -> tuple[Any, Callable[[], Any]]:
        call, value = self._call, self._value
        self._call = self._value = None
        return call, lambda: value

    def __del__(self) -> None:
        if self._call is not None:
            if not isinstance(self._value, AsyncGeneratorType):
                self._value.close()  # or Python would warn of it beside its substitute
            self._call.end(GeneratorExit())


def _coroutine(call: Call, value: Any) -> Any:
    return _named_as(value, _await(_NotStarted(call, value)))


async def _await(not_started: _NotStarted) -> Any:
    call, value = not_started.start()
    with call:
        return complete_or_wrap(call, await value())


def _generator(call: Call, value: Any) -> Any:
    not_started = _NotStarted(Stream(call.function, call.span), value)
    return _named_as(value, generator_function(not_started.start)())


def _async_generator(call: Call, value: Any) -> Any:
    not_started = _NotStarted(Stream(call.function, call.span), value)
    return _named_as(value, async_generator_function(not_started.start)())


def _named_as(value: Any, substitute: Any) -> Any:
    """Give ``substitute`` the name of ``value``, which warnings and tasks show."""
    substitute.__name__ = getattr(value, "__name__", type(value).__name__)
    substitute.__qualname__ = getattr(value, "__qualname__", type(value).__qualname__)
    return substitute


def _proxy(call: Call, value: object) -> Any:
    proxy = _proxy_of(cast("Hashable", type(value)))
    yields_items = hasattr(proxy, "__next__") or hasattr(proxy, "__anext__")
    return proxy(Stream(call.function, call.span) if yields_items else call, value)


class _Proxy:
    """Behaves as ``value`` does, and records its outcome.

    Each class of values has a subclass of its own, with the special methods of that class.
    """

    __slots__ = ("__weakref__", "prefactor_call_", "prefactor_used_", "prefactor_value_")

    prefactor_value_: Any
    prefactor_call_: Call
    prefactor_used_: bool

    def __init__(self, call: Call, value: Any) -> None:
        object.__setattr__(self, "prefactor_value_", value)
        object.__setattr__(self, "prefactor_call_", call)
        object.__setattr__(self, "prefactor_used_", False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prefactor_value_, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.prefactor_value_, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.prefactor_value_, name)

    def __del__(self) -> None:
        _end(self)


def _end(proxy: _Proxy, error: BaseException | None = None) -> None:
    """End the call, if it is open: nobody will ask the proxy for more. A proxy that was never
    awaited or asked for an item has done its work; any other was left early."""
    call = proxy.prefactor_call_
    if call.is_open:
        call.end(error or (GeneratorExit() if proxy.prefactor_used_ else None))


class _Turn:
    """The turn of a proxied object: the span is innermost meanwhile, and an error ends the call."""

    __slots__ = ("_call", "_value")

    def __init__(self, proxy: _Proxy) -> None:
        object.__setattr__(proxy, "prefactor_used_", True)
        self._call = proxy.prefactor_call_
        self._value = proxy.prefactor_value_

    def __enter__(self) -> tuple[Any, Any]:
        if self._call.is_open:
            self._call.push_span()
        return self._call, self._value

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._call.is_open:
            self._call.end(error)
        self._call.remove_span()


def _next(self: _Proxy) -> Any:
    with _Turn(self) as (stream, value):
        try:
            item = next(value)
        except StopIteration:
            stream.end(None)
            raise
    stream.add(item)
    return item


async def _anext(self: _Proxy) -> Any:
    with _Turn(self) as (stream, value):
        try:
            item = await anext(value)
        except StopAsyncIteration:
            stream.end(None)
            raise
    stream.add(item)
    return item


def _await_proxy(self: _Proxy) -> Any:
    object.__setattr__(self, "prefactor_used_", True)
    if not self.prefactor_call_.is_open:
        return self.prefactor_value_.__await__()
    return _await_value(self).__await__()


async def _await_value(proxy: _Proxy) -> Any:
    # The proxy is an argument because `await` keeps only the iterator: nothing else would refer
    # to the proxy, and its finalizer would end the call.
    call = proxy.prefactor_call_
    with call:
        return complete_or_wrap(call, await proxy.prefactor_value_)


def _step(name: str) -> Callable[..., Any]:
    """A method that drives a coroutine, as a task does: ``send()`` or ``throw()``."""

    def step(self: _Proxy, *args: Any) -> Any:
        with _Turn(self) as (call, value):
            try:
                return getattr(value, name)(*args)
            except StopIteration as stop:
                call.complete(stop.value)
                raise

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
        _end(self, error[1])


async def _aexit(self: _Proxy, *error: Any) -> Any:
    try:
        return await self.prefactor_value_.__aexit__(*error)
    finally:
        _end(self, error[1])


def _closing(name: str) -> Callable[..., Any]:
    def close(self: _Proxy) -> Any:
        closed: object = getattr(self.prefactor_value_, name)()
        if "__await__" in _members_of(type(closed)):
            return _await_and_end(self, cast("Awaitable[Any]", closed))
        _end(self)
        return closed

    return close


async def _await_and_end(proxy: _Proxy, closed: Awaitable[Any]) -> Any:
    try:
        return await closed
    finally:
        _end(proxy)


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

# Every class has these of its own: they are not forwarded.
_NOT_FORWARDED: Final = {
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
    for name in has.keys() - members.keys() - _NOT_FORWARDED:
        if name.startswith("__") and name.endswith("__"):
            members[name] = _forwarding(name) if callable(has[name]) else has[name]
    if "__hash__" not in has:
        members["__hash__"] = None
    # So that isinstance() takes the proxy for an instance of this class.
    members["__class__"] = property(lambda self: kind)
    members["__slots__"] = ()
    return type(kind.__name__, (_Proxy,), members)


def _forwarding(name: str) -> Callable[..., Any]:
    def forward(self: _Proxy, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.prefactor_value_, name)(*args, **kwargs)

    return forward
