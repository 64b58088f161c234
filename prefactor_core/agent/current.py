"""Spans of the current run, for code that is not handed the run: ``traced`` and ``span``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, overload

from prefactor_core.agent.disabled_span import SpanOutsideOfRun
from prefactor_core.agent.instance import current_instance
from prefactor_core.agent.span import SpanContext
from prefactor_core.agent.traced import F, traced_by
from prefactor_core.agent.traced_call import log_fork
from prefactor_core.exceptions import ClientNotInitializedError, ClientScopeError
from prefactor_core.exceptions.log import log
from prefactor_core.schema_registry.span_type import NamedParams
from prefactor_core.schema_registry.type_schema import Fields, SpanParams
from prefactor_core.schema_registry.typed_span import TypedStep

logger = logging.getLogger("prefactor_core.agent.span")

Result = TypeVar("Result")


@overload
def traced(
    schema_name: str,
    *,
    exclude: Collection[str] = (),
    capture_result: bool = True,
    reduce: Callable[[list[Any]], object] | None = None,
) -> Callable[[F], F]: ...


@overload
def traced(
    params: type[SpanParams[Any]] | None = None,
    /,
    *,
    exclude: Collection[str] = (),
    capture_result: bool = True,
    reduce: Callable[[list[Any]], object] | None = None,
    **fields: object,
) -> Callable[[F], F]: ...


@overload
def traced(function: F, /) -> F: ...


def traced(
    schema_name: object = None,
    *,
    exclude: Collection[str] = (),
    capture_result: bool = True,
    reduce: Callable[[list[Any]], object] | None = None,
    **fields: object,
) -> Any:
    """Record every call of a function as a span of the current run.

    It takes functions, methods and generators, asynchronous or not, in three ways:

    * ``@traced``: the span is an ``agent:tool_call``. ``tool`` is the name of the function,
      ``arguments`` are its arguments by name, and ``output`` is its return value.
    * ``@traced(LLMCall)``, or ``AgentRun``, ``Retrieval`` or ``ToolCall``, the classes of
      :mod:`prefactor_core.span_types`: each argument becomes the field of the same name. The other
      arguments are ``arguments`` of a ``ToolCall`` and ``input`` of an ``AgentRun``; ``LLMCall``
      and ``Retrieval`` have no place for them. ``@traced(LLMCall, model="small-1")`` gives fields
      for calls without such an argument, or with None for it. The result is the return value: an
      ``LLMResult``, or a dict of nothing but its fields; any other value is its ``response``, the
      ``output`` of an ``AgentRun`` or a ``ToolCall``, the ``documents`` of a ``Retrieval``. What is
      recorded fits the schema of the type: what is no text becomes one where the type wants a
      text, and so on.
    * ``@traced("agent:tool")``, a span type of your own: the payload has the arguments by name. The
      result is the return value: a mapping as it is, another value under the key ``result``.

    The ``self`` and ``cls`` of methods and the names in ``exclude`` are left out.
    ``capture_result=False`` records no result. The span ends like that of
    ``with instance.span(...)``. The run is the :func:`current_instance` at the call; without one
    the function runs unrecorded, which one line of the log says.

    The span of a generator lasts from the request for its first item to its end; a generator that
    is left early is ``cancelled``. The span is innermost only while the generator's own code runs.
    Its items are captured as they are yielded: at most the first 10,000, of ``max_payload_bytes``
    in all (``items_left_out`` in the result: the number of the others). They are recorded as
    ``items``; with a class, as a returned list would be, and texts joined as a ``response``. With
    ``reduce`` the result is the return value of ``reduce`` for the list of the first 10,000 items,
    which are kept in memory, uncaptured, until the generator ends. The generator begins with its
    first item, so arguments that do not fit raise there and not at the call.

    A decorated function behaves as without the decorator: if its call cannot be recorded, in a
    forked process say, it runs unrecorded. Two errors reach its caller on purpose: a
    :class:`~prefactor_core.PrefactorTerminatedError` in a run that was terminated, and with
    ``check_payloads="raise"`` the error of a payload that does not fit its schema.

    A function may return before its work is done: a coroutine, a future or another awaitable, or an
    iterator, such as the stream of a model's client. The span lasts until that is done, and ends as
    it does; one that is never awaited, or left early, is ``cancelled``. Coroutines and generators
    are replaced by others, other awaitables and iterators by a proxy that is an instance of the
    same class; a future or task stays the same object. Files do not count as streams.

    Raises :class:`~prefactor_core.PrefactorValueError` for an object that cannot be decorated, a
    field that the class does not have, and a function without a parameter for a field that the
    class needs.
    """
    return traced_by(current_instance, schema_name, exclude, capture_result, reduce, fields)


@overload
def span(
    schema_name: str,
    parent_span_id: str | None = None,
    payload: Mapping[str, object] | Fields | None = None,
) -> SpanContext: ...


@overload
def span(
    params: SpanParams[Result], /, parent_span_id: str | None = None
) -> SpanContext[Result]: ...


@overload
def span(
    params: Fields, /, parent_span_id: str | None = None
) -> SpanContext[Mapping[str, object] | Fields]: ...


def span(
    schema_name: str | TypedStep, parent_span_id: str | None = None, payload: Any = None
) -> SpanContext[Any]:
    """A step of the current run: ``async with prefactor_core.span(...) as span:``, or ``with``.

    As :meth:`AgentInstanceHandle.span` of :func:`current_instance`. Without a run, after the client
    has closed, and in a forked process, it is a span that does nothing: all its methods work, it
    is no parent, and :func:`current_span` ignores it. One line of the log says so, for each span
    type. A run that was terminated raises :class:`~prefactor_core.PrefactorTerminatedError`.
    """
    instance = current_instance()
    if instance is not None:
        try:
            return instance.span(schema_name, parent_span_id, payload)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        except ClientNotInitializedError:
            pass  # another thread has just closed the client
        except ClientScopeError:
            log_fork(f"span({_name_of(schema_name)!r})")
    else:
        _log_outside(_name_of(schema_name))
    return SpanOutsideOfRun()


# The names that were logged. Each is logged once, and at most so many are.
_logged: set[str] = set()
_MOST_LOGGED = 1_000


def _log_outside(name: str) -> None:
    if name not in _logged and len(_logged) < _MOST_LOGGED:
        _logged.add(name)
        message = (
            "a %r span is opened outside of a run: it and others like it are not recorded; a "
            "thread of your own knows no run: start it by contextvars.copy_context().run, or use "
            "instance.span()"
        )
        log(logger, logging.INFO, message, name)


def _name_of(step: object) -> str:
    if isinstance(step, NamedParams):
        return step.name
    return step if isinstance(step, str) else type(step).__qualname__
