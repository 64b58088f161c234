"""Calls of traced functions: the span of each, and what is recorded of it."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, overload

from prefactor_core.agent.span import SpanContext
from prefactor_core.context_stack import SpanContextStack
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    ClientScopeError,
    PrefactorCoreError,
    PrefactorTerminatedError,
    PrefactorValueError,
    in_message,
)
from prefactor_core.exceptions.log import log
from prefactor_core.payloads.markers import full_type_name

if TYPE_CHECKING:
    from prefactor_core.payloads.capture import Capture
    from prefactor_core.recording.recorder import Recorder
    from prefactor_core.schema_registry.type_schema import SpanParams

logger = logging.getLogger("prefactor_core.agent.traced")

MAX_ITEMS: Final = 10_000
"""The most items of a generator that are recorded."""

_AROUND_ITEMS: Final = 64  # bytes: {"items":[],"items_left_out":…}

Reduce = Callable[[list[Any]], object]
"""Makes what is recorded from the list of items that a generator has yielded."""


class SpanSource(Protocol):
    """Where the spans of traced calls come from: a run."""

    recorder: Recorder

    @property
    def records(self) -> bool:
        """Whether anything is recorded: False if the client is disabled."""
        ...

    @overload
    def span(self, schema_name: str, *, payload: Mapping[str, object]) -> SpanContext[Any]: ...
    @overload
    def span(self, params: SpanParams[Any], /) -> SpanContext[Any]: ...
    def span(self, schema_name: Any, *, payload: Any = None) -> SpanContext[Any]:
        """A new span, which is to be entered."""
        ...


class TracedFunction:
    """A decorated function: its name, its signature, and how its calls are recorded."""

    def __init__(
        self,
        schema_name: str,
        function: Callable[..., Any],
        run: Callable[[], SpanSource | None],
        exclude: Collection[str],
        capture_result: bool,
        reduce: Reduce | None,
    ) -> None:
        self.function = function
        # Never its repr: the repr of a partial shows its arguments.
        self.name: str = getattr(function, "__qualname__", type(function).__qualname__)
        self.captures_result = capture_result
        self.reduces = reduce is not None
        self._run = run
        self._schema_name = schema_name
        self._reduce = reduce
        self._logged: set[str] = set()
        self.signature = _signature_of(function)
        parameters = list(self.signature.parameters)
        for name in exclude:
            if name not in parameters:
                raise PrefactorValueError(
                    f"exclude names {in_message(name)}, which is no parameter of {self.name}: "
                    f"it has {', '.join(map(repr, parameters)) or 'none'}"
                )
        self.excluded = set(exclude)
        if _is_method(self.name) and parameters[:1] in (["self"], ["cls"]):
            self.excluded.add(parameters[0])

    def span(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SpanContext[Any] | None:
        """The span of a call; None if the call is not recorded."""
        run = self._run()
        if run is None:
            message = (
                "%s is called outside of a run: this call and others like it are not recorded; a "
                "thread of your own knows no run: start it by contextvars.copy_context().run, or "
                "use @instance.traced"
            )
            self.log_once(logging.INFO, message, self.name)
        elif run.records:
            try:
                return self.span_of(run, self._arguments(args, kwargs))
            except PrefactorCoreError as error:
                self.continue_unrecorded(error)
        return None

    def span_of(self, run: SpanSource, arguments: dict[str, object]) -> SpanContext[Any]:
        """The span of a call with these arguments."""
        return run.span(self._schema_name, payload=arguments)

    def continue_unrecorded(self, error: PrefactorCoreError) -> None:
        """Let a call go on without a span; raises ``error`` if it is meant to stop the agent."""
        match error:
            case PrefactorTerminatedError() | PrefactorValueError():
                raise error  # the latter in development only: check_payloads="raise"
            case ClientNotInitializedError():
                pass  # another thread has just closed the client
            case ClientScopeError():
                log_fork(self.name)
            case _:
                self.log_once(logging.WARNING, "%s is not recorded: %s", self.name, error)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, object]:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            return {}  # the call itself will raise, inside the span
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name not in self.excluded}

    def result(self, value: object, capture: Capture) -> dict[str, object] | None:
        """The result of the span of a call that returned ``value``."""
        if value is None or not self.captures_result:
            return None
        return capture.fields_of(value, "result")

    def result_of_items(
        self, items: list[object], left_out: int, capture: Capture
    ) -> dict[str, object]:
        """The result of the span of a generator that yielded ``items``, and ``left_out`` more."""
        if self._reduce is None:
            fields = self.items(items, capture)
        else:
            try:
                fields = self.result(self._reduce(items), capture) or {}
            except Exception as error:
                # Without its message, which may well quote the items.
                message = (
                    "reduce= of %s raised %s: the items are recorded instead, whenever it raises"
                )
                self.log_once(logging.ERROR, message, self.name, full_type_name(type(error)))
                fields = self.items(items, capture)
        if left_out:
            fields["items_left_out"] = left_out
        return fields

    def items(self, items: list[object], capture: Capture) -> dict[str, object]:
        """The result of the span of a generator that yielded ``items``, without ``reduce=``."""
        return {"items": items}

    def log_once(self, level: int, message: str, *args: object) -> None:
        if message not in self._logged:
            self._logged.add(message)
            log(logger, level, message, *args)


# The last process that has logged it.
_fork_logged_in = 0


def log_fork(name: str) -> None:
    global _fork_logged_in
    if _fork_logged_in != os.getpid():
        _fork_logged_in = os.getpid()
        message = "%s is called in a fork of its client's process: such calls are not recorded"
        log(logger, logging.WARNING, message, name)


def _is_method(name: str) -> bool:
    """Whether the function with this qualified name was defined in the body of a class."""
    around = name.rpartition(".")[0]
    return around != "" and not around.endswith("<locals>")


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return inspect.signature(lambda *args, **kwargs: None)  # pyright: ignore[reportUnknownLambdaType]


class Call:
    """One call of a traced function. ``span``: None if the call is not recorded.

    Each ``with`` block is a part of the call: inside, the span is the innermost one. The call ends
    with the block, unless :meth:`continues` was called in it.
    """

    def __init__(self, function: TracedFunction, span: SpanContext[Any] | None) -> None:
        self.function = function
        self.span = span
        self._continues = False

    @property
    def is_open(self) -> bool:
        """Whether the span has been entered and has not ended."""
        return self.span is not None and self.span.is_open

    def continues(self) -> None:
        """Keep the span open at the end of this block: another part of the call will follow."""
        self._continues = True

    def complete(self, value: object) -> None:
        """The function has returned ``value``, and nothing of its work is left to do."""
        if self.span is not None:
            try:  # noqa: SIM105 - suppress() would need more of the stack
                self.span.complete_nowait(self.function.result(value, self.span.capture))
            except (RecursionError, MemoryError):
                pass  # the span ends with the block, without a result

    def end(self, error: BaseException | None) -> None:
        """The call has ended, with ``error`` if there is one."""
        if self.span is not None:
            self.span.__exit__(None if error is None else type(error), error, None)

    def push_span(self) -> None:
        """Make the span the innermost one of this context. Only an entered span can be."""
        if self.span is not None and self.span.was_opened:
            SpanContextStack.enter(self.span)

    def remove_span(self) -> None:
        """Take the span off the stack of this context. It stays open."""
        if self.span is not None and self.span.was_opened:
            SpanContextStack.remove(self.span)

    def __enter__(self) -> Self:
        if self.span is not None:
            if self.span.was_opened:
                self.push_span()
                return self
            try:
                self.span.__enter__()
            except PrefactorCoreError as error:
                self.span = None
                self.function.continue_unrecorded(error)
        return self

    async def __aenter__(self) -> Self:
        if self.span is None or self.span.was_opened:
            return self.__enter__()
        try:
            await self.span.__aenter__()
        except PrefactorCoreError as error:
            self.span = None
            self.function.continue_unrecorded(error)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._continues:
            self._continues = False
            self.remove_span()
        else:
            self.end(error)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, error, traceback)


class Stream(Call):
    """A call that yields items one by one, and the items so far.

    It holds no cancel scope: a generator must not hold one across a yield.
    """

    def __init__(self, function: TracedFunction, span: SpanContext[Any] | None) -> None:
        super().__init__(function, span)
        # Captures each item as it is yielded; None where no items are kept. The items themselves
        # are kept for reduce= only.
        self._capture: Capture | None = None
        if function.captures_result and span is not None and span.capture.enabled:
            self._capture = span.capture
            self._room = self._capture.max_payload_bytes - _AROUND_ITEMS
        self._items: list[object] = []
        self._left_out = 0

    def add(self, item: object) -> None:
        """Record an item that is yielded now."""
        if self._capture is None or not self.is_open:
            return
        if len(self._items) == MAX_ITEMS or self._left_out:
            self._left_out += 1
        elif self.function.reduces:
            self._items.append(item)
        elif (captured := self._capture.item(item, self._room)) is None:
            self._left_out += 1
        else:
            self._room = max(0, self._room - len(captured) - 1)
            self._items.append(captured)

    def end(self, error: BaseException | None) -> None:
        if self.span is not None and self._capture is not None and self.is_open:
            try:  # noqa: SIM105 - suppress() would need more of the stack
                self.span.set_result(
                    self.function.result_of_items(self._items, self._left_out, self._capture)
                )
            except (RecursionError, MemoryError):
                pass  # the span ends without a result
        super().end(error)
