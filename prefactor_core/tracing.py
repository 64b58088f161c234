"""Tracing: every call of a function is a span; the decorator ``traced``."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from prefactor_core.capture import fields_of
from prefactor_core.context_stack import OtherStack
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    ClientScopeError,
    PrefactorCoreError,
    PrefactorTerminatedError,
    PrefactorValueError,
    in_message,
)
from prefactor_core.log import log
from prefactor_core.markers import full_type_name
from prefactor_core.span_context import SpanContext

if TYPE_CHECKING:
    from prefactor_core.agent_instance import AgentInstanceHandle
    from prefactor_core.capture import Capture

logger = logging.getLogger("prefactor_core.tracing")

MAX_ITEMS: Final = 10_000
_AROUND_ITEMS: Final = 64  # bytes: {"items":[],"items_left_out":…}

F = TypeVar("F", bound=Callable[..., object])

Reduce = Callable[[list[Any]], object]
"""Makes what is recorded of the items that a generator has yielded."""


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
        calls = _Calls(function, instance, schema_name, exclude, capture_result, reduce)
        # What makes the wrapper is also what inspect says of the function.
        if inspect.isasyncgenfunction(function):
            wrapper = _async_generator_function(calls)
        elif inspect.isgeneratorfunction(function):
            wrapper = _generator_function(calls)
        elif reduce is not None:
            raise PrefactorValueError(f"reduce is for generators, and {calls.name} is none")
        elif inspect.iscoroutinefunction(function):
            wrapper = _coroutine_function(calls)
        else:
            wrapper = _function(calls)
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


class _Calls:
    """What is the same for all calls of a function."""

    def __init__(
        self,
        function: Callable[..., Any],
        instance: Callable[[], AgentInstanceHandle | None],
        schema_name: str,
        exclude: Collection[str],
        capture_result: bool,
        reduce: Reduce | None,
    ) -> None:
        self.function = function
        # Never its repr: that of a partial has its arguments.
        self.name: str = getattr(function, "__qualname__", type(function).__qualname__)
        self.captures_result = capture_result
        self.reduces = reduce is not None
        self._instance = instance
        self._schema_name = schema_name
        self._reduce = reduce
        self._told: set[str] = set()
        self._signature = _signature_of(function)
        parameters = list(self._signature.parameters)
        for name in exclude:
            if name not in parameters:
                raise PrefactorValueError(
                    f"exclude names {in_message(name)}, which is no parameter of {self.name}: "
                    f"it has {', '.join(map(repr, parameters)) or 'none'}"
                )
        self._left_out = {*exclude, *(name for name in parameters[:1] if name in ("self", "cls"))}

    def span(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SpanContext | None:
        """The span of a call; None without a run to record it to."""
        instance = self._instance()
        if instance is None:
            message = "%s is called outside of a run: this call and others like it are not recorded"
            self._tell_once(logging.INFO, message, self.name)
        elif instance.records:
            try:
                return instance.span(self._schema_name, payload=self._arguments(args, kwargs))
            except PrefactorCoreError as error:
                self.goes_on_after(error)
        return None

    def goes_on_after(self, error: PrefactorCoreError) -> None:
        """A call goes on unrecorded; raises ``error`` if that is meant to stop the agent."""
        match error:
            case PrefactorTerminatedError() | PrefactorValueError():
                raise error  # the latter in development only: check_payloads="raise"
            case ClientNotInitializedError():
                pass  # another thread has closed the client just now
            case ClientScopeError():
                _tell_of_fork(self.name)
            case _:
                self._tell_once(logging.WARNING, "%s is not recorded: %s", self.name, error)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, object]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            return {}  # the call itself will raise, inside of the span
        bound.apply_defaults()
        return {
            name: value for name, value in bound.arguments.items() if name not in self._left_out
        }

    def result(self, value: object) -> Mapping[str, object] | None:
        """What the span of a call that returned ``value`` results in."""
        if value is None or not self.captures_result:
            return None
        return fields_of(value, "result")

    def result_of_items(self, items: list[object], left_out: int) -> dict[str, object]:
        """What the span of a generator results in."""
        fields: dict[str, object] = {"items": items}
        if self._reduce is not None:
            try:
                fields = dict(self.result(self._reduce(items)) or {})
            except Exception as error:
                # Not its message: that may well be of the items.
                message = (
                    "reduce= of %s raised %s: the items are recorded instead, as often as it does"
                )
                self._tell_once(logging.ERROR, message, self.name, full_type_name(type(error)))
        if left_out:
            fields["items_left_out"] = left_out
        return fields

    def _tell_once(self, level: int, message: str, *args: object) -> None:
        if message not in self._told:
            self._told.add(message)
            log(logger, level, message, *args)


# The process in which it was said last.
_fork_told_in = 0


def _tell_of_fork(name: str) -> None:
    global _fork_told_in
    if _fork_told_in != os.getpid():
        _fork_told_in = os.getpid()
        message = "%s is called in a fork of its client's process: such calls are not recorded"
        log(logger, logging.WARNING, message, name)


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return inspect.signature(lambda *args, **kwargs: None)  # pyright: ignore[reportUnknownLambdaType]


class _Call:
    """One call of a function: the span of it, if there is a run to record it to."""

    def __init__(self, calls: _Calls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls = calls
        self._span = calls.span(args, kwargs)

    def returns(self, value: object) -> None:
        """The function has returned."""
        if self._span is not None:
            try:  # noqa: SIM105 - that would take more stack
                self._span.complete_nowait(self._calls.result(value))
            except (RecursionError, MemoryError):
                pass  # the span ends with the block, without a result

    def __enter__(self) -> Self:
        if self._span is not None:
            try:
                self._span.__enter__()
            except PrefactorCoreError as error:
                self._span = None
                self._calls.goes_on_after(error)
        return self

    async def __aenter__(self) -> Self:
        if self._span is not None:
            try:
                await self._span.__aenter__()
            except PrefactorCoreError as error:
                self._span = None
                self._calls.goes_on_after(error)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._span is not None:
            self._span.__exit__(exc_type, error, traceback)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, error, traceback)


class _Stream(_Call):
    """One generator: the span of it, and what it has yielded so far.

    The span is innermost only in the generator's own code: ``with stream.outside`` is the turn
    of who iterates it. Holds no cancel scope, which a generator must not do.
    """

    def __init__(self, calls: _Calls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(calls, args, kwargs)
        # What captures an item as it is yielded; None where nothing is kept of them. Only for
        # reduce= the items themselves are kept.
        self._capture: Capture | None = None
        if calls.captures_result and self._span is not None and self._span.capture.enabled:
            self._capture = self._span.capture
            self._room = self._capture.max_payload_bytes - _AROUND_ITEMS
        self._items: list[object] = []
        self._left_out = 0
        self.outside = OtherStack()

    def add(self, item: object) -> None:
        """The generator yields this now."""
        if self._capture is None:
            return
        if len(self._items) == MAX_ITEMS or self._left_out:
            self._left_out += 1
        elif self._calls.reduces:
            self._items.append(item)
        elif (captured := self._capture.item(item, self._room)) is None:
            self._left_out += 1
        else:
            self._room = max(0, self._room - len(captured) - 1)
            self._items.append(captured)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._span is not None and self._capture is not None:
            self._span.set_result(self._calls.result_of_items(self._items, self._left_out))
        super().__exit__(exc_type, error, traceback)
        self.outside.swap()


def _function(calls: _Calls) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with _Call(calls, args, kwargs) as call:
            value = calls.function(*args, **kwargs)
            call.returns(value)
            return value

    return wrapper


def _coroutine_function(calls: _Calls) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with _Call(calls, args, kwargs) as call:
            value = await calls.function(*args, **kwargs)
            # The span ends here and not with its block, which would make a checkpoint: a
            # cancellation that waits there would take what the function has returned.
            call.returns(value)
            return value

    return wrapper


def _generator_function(calls: _Calls) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with _Stream(calls, args, kwargs) as stream:
            inner: Generator[Any, Any, Any] = calls.function(*args, **kwargs)
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
                    with stream.outside:
                        given = yield item
                    resume = inner.send
                except GeneratorExit:
                    inner.close()
                    raise
                except BaseException as error:  # noqa: ASYNC103 - it is up to the generator
                    resume, given = inner.throw, error

    return wrapper


def _async_generator_function(calls: _Calls) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with _Stream(calls, args, kwargs) as stream:
            inner: AsyncGenerator[Any, Any] = calls.function(*args, **kwargs)
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
                    with stream.outside:
                        given = yield item  # noqa: ASYNC119 - its owner closes it, as any other
                    step = inner.asend(given)
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: ASYNC103
                    step = inner.athrow(error)

    return wrapper


def _first_step(inner: AsyncGenerator[Any, Any]) -> Awaitable[Any]:
    """Begin a generator that the event loop must not know of: who wraps it closes it.

    Of two generators that are forgotten together, or left at the end of the loop, the loop
    would close both at the same time, and the one that closes the other would fail.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=_leave_it)
    try:
        return inner.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _leave_it(inner: AsyncGenerator[Any, Any]) -> None:
    """Without a finalizer, Python would close it on the spot, where nothing can be awaited."""
