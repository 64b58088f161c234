"""The decorator behind ``traced``: every call of a function is a span."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Generator
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prefactor_core.agent.traced_call import Call, Reduce, SpanSource, Stream, TracedFunction
from prefactor_core.agent.traced_generator import async_generator_function, generator_function
from prefactor_core.agent.traced_value import complete_or_wrap
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import check_flag

if TYPE_CHECKING:
    from prefactor_core.agent import traced_types
else:
    traced_types = LazyModule("prefactor_core.agent.traced_types")

F = TypeVar("F", bound=Callable[..., object])


def traced_by(
    run: Callable[[], SpanSource | None],
    what: object,
    exclude: Collection[str],
    capture_result: bool,
    reduce: Reduce | None,
    fields: dict[str, object],
) -> Any:
    """The decorator :func:`prefactor_core.traced`, or the function decorated with it.

    ``run`` is asked at each call for the run that the span belongs to; None: there is none.
    ``what``: the name of a span type, the class of a standard type, or, for the type of tools,
    None or the function itself.
    """
    if (callable(what) and not isinstance(what, type)) or isinstance(what, classmethod):
        return traced_by(run, None, exclude, capture_result, reduce, fields)(what)
    make: Callable[..., TracedFunction]
    if what is None or isinstance(what, type):
        traced_types.standard_type(what)
        make = partial(traced_types.TypedFunction, what, fields)
    elif not isinstance(what, str) or not what:
        raise PrefactorValueError(
            f"schema_name must be the name of a span type, got {in_message(what)}: write @traced "
            'or @traced("agent:tool") above the function'
        )
    elif fields:
        raise PrefactorValueError(
            f"@traced({in_message(what)}) takes exclude, capture_result and reduce, got "
            f"{', '.join(fields)}: only the standard types, as @traced(LLMCall), have fields to "
            "be given"
        )
    else:
        make = partial(TracedFunction, what)
    if not isinstance(exclude, Collection) or isinstance(exclude, str | bytes):
        raise PrefactorValueError(
            f"exclude must be a collection of names, such as ('query',), got {in_message(exclude)}"
        )
    check_flag("capture_result", capture_result)
    if reduce is not None and not callable(reduce):
        raise PrefactorValueError(
            f"reduce must be a function of a list, got {type(reduce).__qualname__}"
        )

    def decorate(function: F) -> F:
        if isinstance(function, staticmethod):
            return cast("F", staticmethod(decorate(cast("F", function.__func__))))
        _check_function(function)
        target = make(function, run, exclude, capture_result, reduce)
        # The wrapper is of the same kind as the function, by the same tests of `inspect`.
        if inspect.isasyncgenfunction(function):
            wrapper = async_generator_function(_beginning(target))
        elif inspect.isgeneratorfunction(function) and not _is_awaited(function):
            wrapper = generator_function(_beginning(target))
        elif reduce is not None:
            raise PrefactorValueError(f"reduce is for generators, and {target.name} is none")
        elif inspect.iscoroutinefunction(function):
            wrapper = _coroutine_function(target)
        elif inspect.isgeneratorfunction(function):
            wrapper = _generator_based_coroutine_function(target)
        else:
            wrapper = _function(target)
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
    """Whether the generators of a function are for ``await``: types.coroutine decorates it."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return bool(getattr(code, "co_flags", 0) & inspect.CO_ITERABLE_COROUTINE)


def _share_methods(function: object, wrapper: object) -> None:
    """Copy the public methods of a callable object to its wrapper: ``cache_clear()``, for example.
    :func:`wraps` copies its ``__dict__``."""
    for name in dir(type(function)):
        if not name.startswith("_") and callable(getattr(type(function), name, None)):
            setattr(wrapper, name, getattr(function, name))


def _beginning(target: TracedFunction) -> Callable[..., tuple[Stream, Callable[[], Any]]]:
    def begin(*args: Any, **kwargs: Any) -> tuple[Stream, Callable[[], Any]]:
        return Stream(target, target.span(args, kwargs)), partial(target.function, *args, **kwargs)

    return begin


def _function(target: TracedFunction) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with Call(target, target.span(args, kwargs)) as call:
            return complete_or_wrap(call, target.function(*args, **kwargs))

    return wrapper


def _coroutine_function(target: TracedFunction) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with Call(target, target.span(args, kwargs)) as call:
            # The span ends here and not with its block, whose checkpoint could raise a pending
            # cancellation: the caller would lose the value that the function has returned.
            return complete_or_wrap(call, await target.function(*args, **kwargs))

    return wrapper


def _generator_based_coroutine_function(target: TracedFunction) -> Callable[..., Any]:
    function = _coroutine_function(target)

    @types.coroutine
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        waiting: Generator[Any, Any, Any] = function(*args, **kwargs).__await__()
        return (yield from waiting)

    return wrapper
