"""Calls of traced functions: the span of each, and what is recorded of it."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

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
from prefactor_core.payloads.capture import fields_of
from prefactor_core.payloads.markers import full_type_name

if TYPE_CHECKING:
    from prefactor_core.agent.instance import AgentInstanceHandle
    from prefactor_core.payloads.capture import Capture

logger = logging.getLogger("prefactor_core.agent.tracing")

MAX_ITEMS: Final = 10_000
_AROUND_ITEMS: Final = 64  # bytes: {"items":[],"items_left_out":…}

Reduce = Callable[[list[Any]], object]
"""Makes what is recorded of the items that a generator has yielded."""


class Calls:
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
        self._left_out = set(exclude)
        if _is_of_class(self.name) and parameters[:1] in (["self"], ["cls"]):
            self._left_out.add(parameters[0])

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

    def result(self, value: object, lost: set[str]) -> Mapping[str, object] | None:
        """What the span of a call that returned ``value`` results in; ``lost`` gets the reasons
        why something is not in it."""
        if value is None or not self.captures_result:
            return None
        return fields_of(value, "result", lost)

    def result_of_items(
        self, items: list[object], left_out: int, lost: set[str]
    ) -> dict[str, object]:
        """The same, of a generator."""
        fields: dict[str, object] = {"items": items}
        if self._reduce is not None:
            try:
                fields = dict(self.result(self._reduce(items), lost) or {})
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


def _is_of_class(name: str) -> bool:
    """Whether the function of this qualified name stands in the body of a class."""
    around = name.rpartition(".")[0]
    return around != "" and not around.endswith("<locals>")


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return inspect.signature(lambda *args, **kwargs: None)  # pyright: ignore[reportUnknownLambdaType]


class Call:
    """One call of a function: the span of it, if there is a run to record it to.

    ``with`` is a part of the call: the span is innermost there, and ends with it, unless
    :meth:`goes_on` says that another part comes.
    """

    def __init__(self, calls: Calls, span: SpanContext | None) -> None:
        self.calls = calls
        self.span = span
        self._goes_on = False

    @property
    def is_open(self) -> bool:
        """Whether there is anything left to record of it."""
        return self.span is not None and self.span.is_open

    def goes_on(self) -> None:
        """The call has not ended with this part."""
        self._goes_on = True

    def returns(self, value: object) -> None:
        """The function has returned."""
        if self.span is not None:
            lost: set[str] = set()
            try:
                self.span.complete_nowait(self.calls.result(value, lost))
                if lost:
                    self.span.capture.count(lost)
            except (RecursionError, MemoryError):
                pass  # the span ends with the block, without a result

    def ends(self, error: BaseException | None) -> None:
        """The call has ended, by ``error`` if there is one."""
        if self.span is not None:
            self.span.__exit__(None if error is None else type(error), error, None)

    def enters(self) -> None:
        """The span is innermost from here; only what was entered before can be."""
        if self.span is not None and self.span.was_opened:
            SpanContextStack.enter(self.span)

    def leaves(self) -> None:
        """The span is not innermost any more, and goes on."""
        if self.span is not None and self.span.was_opened:
            SpanContextStack.remove(self.span)

    def __enter__(self) -> Self:
        if self.span is not None:
            if self.span.was_opened:
                self.enters()
                return self
            try:
                self.span.__enter__()
            except PrefactorCoreError as error:
                self.span = None
                self.calls.goes_on_after(error)
        return self

    async def __aenter__(self) -> Self:
        if self.span is not None and not self.span.was_opened:
            try:
                await self.span.__aenter__()
            except PrefactorCoreError as error:
                self.span = None
                self.calls.goes_on_after(error)
            return self
        return self.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._goes_on:
            self._goes_on = False
            self.leaves()
        elif self.span is not None:
            self.span.__exit__(exc_type, error, traceback)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, error, traceback)


class Stream(Call):
    """A call that gives one item after the other, and what it has given so far.

    Holds no cancel scope, which a generator must not do.
    """

    def __init__(self, calls: Calls, span: SpanContext | None) -> None:
        super().__init__(calls, span)
        # What captures an item as it is yielded; None where nothing is kept of them. Only for
        # reduce= the items themselves are kept.
        self._capture: Capture | None = None
        if calls.captures_result and span is not None and span.capture.enabled:
            self._capture = span.capture
            self._room = self._capture.max_payload_bytes - _AROUND_ITEMS
        self._items: list[object] = []
        self._left_out = 0

    def add(self, item: object) -> None:
        """It gives this item now."""
        if self._capture is None:
            return
        if len(self._items) == MAX_ITEMS or self._left_out:
            self._left_out += 1
        elif self.calls.reduces:
            self._items.append(item)
        elif (captured := self._capture.item(item, self._room)) is None:
            self._left_out += 1
        else:
            self._room = max(0, self._room - len(captured) - 1)
            self._items.append(captured)

    def ends(self, error: BaseException | None) -> None:
        self.__exit__(None if error is None else type(error), error, None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._goes_on:
            super().__exit__(exc_type, error, traceback)
        elif self.span is not None:
            if self._capture is not None:
                lost: set[str] = set()
                self.span.set_result(self.calls.result_of_items(self._items, self._left_out, lost))
                if lost:
                    self._capture.count(lost)
            self.span.__exit__(exc_type, error, traceback)
