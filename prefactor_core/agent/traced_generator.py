"""Generators of traced functions: each runs inside another one, which records it."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import partial
from typing import Any, TypeAlias

from prefactor_core.agent.traced_call import Stream
from prefactor_core.context_stack import SeparateStack

Begin: TypeAlias = Callable[..., tuple[Stream, Callable[[], Any]]]
"""Takes the arguments of the recording generator; gives the call, and a function that makes the
generator to record."""


def generator_function(begin: Begin) -> Callable[..., Any]:
    """A function whose generators record those that ``begin`` gives."""

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        stream, function = begin(*args, **kwargs)
        # The span is innermost only while the generator's own code runs. In `with outside` runs
        # the code that iterates over it.
        outside = SeparateStack()
        try:
            with stream:
                inner: Generator[Any, Any, Any] = function()
                resume: Callable[[Any], Any] = inner.send
                given: Any = None
                while True:
                    try:
                        item = resume(given)
                    except StopIteration as stop:
                        return stop.value
                    finally:
                        given = None  # an error and this frame would keep each other alive
                    stream.add(item)
                    try:
                        with outside:
                            given = yield item
                        resume = inner.send
                    except BaseException as error:  # noqa: ASYNC103 - the generator decides
                        # Not thrown in here: this error would be the context of what it raises.
                        resume, given = partial(_throw, inner), error
        finally:
            outside.close()

    return wrapper


def _throw(inner: Generator[Any, Any, Any], error: BaseException) -> Any:
    try:
        if not isinstance(error, GeneratorExit):
            return inner.throw(error)
        inner.close()
        raise error
    finally:
        del error  # see above


def async_generator_function(begin: Begin) -> Callable[..., Any]:
    """A function whose asynchronous generators record those that ``begin`` gives."""

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        stream, function = begin(*args, **kwargs)
        outside = SeparateStack()
        try:
            async with stream:
                inner: AsyncGenerator[Any, Any] = function()
                step = _first_step(inner)
                while True:
                    try:
                        item = await step
                    except StopAsyncIteration:
                        return
                    finally:
                        del step  # it may hold an error: see above
                    stream.add(item)
                    try:
                        with outside:
                            given = yield item  # noqa: ASYNC119 - its owner closes it
                        step = inner.asend(given)
                    except BaseException as error:  # noqa: ASYNC103
                        step = _athrow(inner, error)
        finally:
            outside.close()

    return wrapper


async def _athrow(inner: AsyncGenerator[Any, Any], error: BaseException) -> Any:
    try:
        if not isinstance(error, GeneratorExit):
            return await inner.athrow(error)
        await inner.aclose()
        raise error
    finally:
        del error


def _first_step(inner: AsyncGenerator[Any, Any]) -> Awaitable[Any]:
    """Begin ``inner`` without the event loop's knowledge: the wrapper alone closes it.

    If both generators were forgotten together, or left open at the end of the loop, the loop
    would close both at the same time, and the wrapper would fail as it closes ``inner``.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=_leave_it)
    try:
        return inner.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _leave_it(inner: AsyncGenerator[Any, Any]) -> None:
    """Do nothing. Without a finalizer, Python would close it at once, where nothing can await."""
