"""Tracing: every call of a function is a span; the decorator ``traced``."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Generator
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prefactor_core.agent.traced_call import MAX_ITEMS as MAX_ITEMS
from prefactor_core.agent.traced_call import Call, Calls, Reduce, Stream
from prefactor_core.agent.traced_generator import async_generator_function, generator_function
from prefactor_core.agent.traced_value import DONE, hand_on
from prefactor_core.exceptions import PrefactorValueError, in_message

if TYPE_CHECKING:
    from prefactor_core.agent.instance import AgentInstanceHandle

F = TypeVar("F", bound=Callable[..., object])


def traced_by(
    instance: Callable[[], AgentInstanceHandle | None],
    schema_name: str,
    exclude: Collection[str],
    capture_result: bool,
    reduce: Reduce | None,
) -> Callable[[F], F]:
    """The decorator :func:`prefactor_core.traced`, for the runs that ``instance`` gives."""
    if not isinstance(schema_name, str) or not schema_name:
        raise PrefactorValueError(
            f"schema_name must be the name of a span type, got {in_message(schema_name)}: "
            'write @traced("agent:tool") above the function'
        )
    if isinstance(exclude, str):
        raise PrefactorValueError(
            f"exclude must be a collection of names, such as ('query',), got {in_message(exclude)}"
        )
    if reduce is not None and not callable(reduce):
        raise PrefactorValueError(
            f"reduce must be a function of a list, got {type(reduce).__qualname__}"
        )

    def decorate(function: F) -> F:
        if isinstance(function, staticmethod):
            return cast("F", staticmethod(decorate(cast("F", function.__func__))))
        _check_function(function)
        calls = Calls(function, instance, schema_name, exclude, capture_result, reduce)
        # What makes the wrapper is also what inspect says of the function.
        if inspect.isasyncgenfunction(function):
            wrapper = async_generator_function(_beginning(calls))
        elif inspect.isgeneratorfunction(function) and not _is_awaited(function):
            wrapper = generator_function(_beginning(calls))
        elif reduce is not None:
            raise PrefactorValueError(f"reduce is for generators, and {calls.name} is none")
        elif inspect.iscoroutinefunction(function):
            wrapper = _coroutine_function(calls)
        elif inspect.isgeneratorfunction(function):
            wrapper = _generator_based_coroutine_function(calls)
        else:
            wrapper = _function(calls)
        _share_methods(function, wrapper)
        return cast("F", wraps(function)(wrapper))

    return decorate


def _check_function(function: object) -> None:
    what = None
    if isinstance(function, classmethod):
        what = "a classmethod: put @traced below @classmethod"
    elif isinstance(function, type):
        what = f"the class {function.__qualname__}: decorate its methods"
    elif not callable(function):
        what = type(function).__qualname__
    if what is not None:
        raise PrefactorValueError(f"@traced is for functions, got {what}")


def _is_awaited(function: Callable[..., Any]) -> bool:
    """Whether what a generator function gives is for ``await``: it has types.coroutine above it."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return bool(getattr(code, "co_flags", 0) & inspect.CO_ITERABLE_COROUTINE)


def _share_methods(function: object, wrapper: object) -> None:
    """Give the wrapper what a function that is an object can do beside being called:
    ``cache_clear()`` say. What is in its ``__dict__`` the wrapper gets by :func:`wraps`."""
    for name in dir(type(function)):
        if not name.startswith("_") and callable(getattr(type(function), name, None)):
            setattr(wrapper, name, getattr(function, name))


def _beginning(calls: Calls) -> Callable[..., tuple[Stream, Callable[[], Any]]]:
    def begin(*args: Any, **kwargs: Any) -> tuple[Stream, Callable[[], Any]]:
        return Stream(calls, calls.span(args, kwargs)), partial(calls.function, *args, **kwargs)

    return begin


def _function(calls: Calls) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with Call(calls, calls.span(args, kwargs)) as call:
            value = calls.function(*args, **kwargs)
            if type(value) not in DONE:
                return hand_on(call, value)
            call.returns(value)
            return value

    return wrapper


def _coroutine_function(calls: Calls) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with Call(calls, calls.span(args, kwargs)) as call:
            value = await calls.function(*args, **kwargs)
            # The span ends here and not with its block, which would make a checkpoint: a
            # cancellation that waits there would take what the function has returned.
            if type(value) not in DONE:
                return hand_on(call, value)
            call.returns(value)
            return value

    return wrapper


def _generator_based_coroutine_function(calls: Calls) -> Callable[..., Any]:
    function = _coroutine_function(calls)

    @types.coroutine
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        waiting: Generator[Any, Any, Any] = function(*args, **kwargs).__await__()
        return (yield from waiting)

    return wrapper
