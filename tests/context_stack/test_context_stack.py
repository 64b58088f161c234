"""The open spans around the running code, against a plain list."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from copy import copy
from dataclasses import dataclass
from functools import wraps
from typing import Any

import anyio
import anyio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core import SpanContextStack
from prefactor_core.context_stack import SeparateStack
from prefactor_core.models.lifecycle import SpanStatus

Stack = SpanContextStack


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a context of its own, with an empty stack."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        Context().run(test, *args, **kwargs)

    return run


@dataclass(eq=False)
class OpenSpan:
    """The attributes of a span that the stack reads."""

    recorded_id: str
    instance_id: str = "run"
    status: SpanStatus = SpanStatus.PENDING


make_span = OpenSpan


@isolated
def test_an_empty_stack_has_nothing_to_give() -> None:
    assert Stack.get_stack() == []
    assert (Stack.pop(), Stack.peek(), Stack.depth(), Stack.is_empty()) == (None, None, 0, True)


STEPS = ["push an id", "push a span", "pop", "end a span", "remove a span"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9))))
@isolated
def test_the_stack_is_a_list_of_the_open_spans(steps: list[tuple[str, int]]) -> None:
    model: dict[str, OpenSpan | str] = {}
    for number, (step, at) in enumerate(steps):
        name = f"{number}"
        spans = [entry for entry in model.values() if isinstance(entry, OpenSpan)]
        if step.startswith("push"):
            if step == "push a span":
                model[name] = span = make_span(name)
                Stack.enter(span)
            else:
                model[name] = name
                Stack.push(name)
        elif step == "pop":
            assert Stack.pop() == (model.popitem()[0] if model else None)
        elif spans:
            span = spans[at % len(spans)]
            if step == "end a span":
                span.status = SpanStatus.COMPLETE
            else:
                Stack.remove(span)
            del model[span.recorded_id]
        ids = list(model)
        assert Stack.get_stack() == ids
        assert Stack.peek() == (ids[-1] if ids else None)
        assert (Stack.depth(), Stack.is_empty()) == (len(ids), not ids)


@isolated
def test_changing_the_list_that_was_handed_out_changes_no_stack() -> None:
    Stack.get_stack().append("leaked into the default")
    assert Stack.is_empty()
    assert Context().run(Stack.get_stack) == []
    Stack.push("a")
    Stack.get_stack().clear()
    assert Stack.get_stack() == ["a"]


@isolated
def test_a_span_is_removed_by_identity_and_only_if_it_is_there() -> None:
    first = make_span("same")
    twin, absent = copy(first), copy(first)
    Stack.enter(first)
    Stack.enter(twin)
    Stack.remove(absent)
    assert Stack.get_stack() == ["same", "same"]
    Stack.remove(first)
    assert Stack.depth() == 1
    assert Stack.innermost("run") is twin


@isolated
def test_changes_in_a_copied_context_do_not_leak() -> None:
    outer = make_span("outer")
    Stack.enter(outer)

    def change() -> list[str]:
        Stack.remove(outer)
        Stack.push("inner")
        return Stack.get_stack()

    copied = copy_context()
    assert copied.run(change) == ["inner"]
    assert Stack.get_stack() == ["outer"]
    Stack.push("later")
    assert copied.run(Stack.get_stack) == ["inner"]


@isolated
def test_a_span_that_ended_in_another_context_is_skipped() -> None:
    outer, inner = make_span("outer"), make_span("inner")
    Stack.enter(outer)
    Stack.enter(inner)
    copied = copy_context()
    inner.status = SpanStatus.FAILED
    assert copied.run(Stack.get_stack) == Stack.get_stack() == ["outer"]
    assert copied.run(Stack.innermost, "run") is outer
    outer.status = SpanStatus.CANCELLED
    assert copied.run(Stack.pop) is Stack.peek() is None


async def test_tasks_see_the_spans_that_were_open_when_they_began_and_not_each_others() -> None:
    seen: dict[str, list[str]] = {}

    async def work(name: str) -> None:
        Stack.push(name)
        await anyio.lowlevel.checkpoint()
        seen[name] = Stack.get_stack()

    async def agent() -> None:
        Stack.push("outer")
        async with anyio.create_task_group() as inner:
            for name in ("a", "b", "c"):
                inner.start_soon(work, name)
        seen["agent"] = Stack.get_stack()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent)
    assert seen == {"agent": ["outer"], **{name: ["outer", name] for name in ("a", "b", "c")}}


@isolated
def test_the_innermost_span_is_of_the_same_instance() -> None:
    one, other, ended = make_span("1", "one"), make_span("2", "other"), make_span("3", "one")
    ended.status = SpanStatus.COMPLETE
    for span in (one, other, ended):
        Stack.enter(span)
    assert Stack.innermost("one") is one
    assert Stack.innermost("other") is other
    assert Stack.innermost("third") is None


@isolated
def test_an_id_pushed_by_hand_inside_a_span_is_the_innermost() -> None:
    Stack.enter(make_span("span", "one"))
    Stack.push("by hand")
    assert Stack.innermost("one") == "by hand"
    inner = make_span("inner", "one")
    Stack.enter(inner)
    assert Stack.innermost("one") is inner


@isolated
def test_two_alternating_stacks_see_nothing_of_each_other() -> None:
    Stack.push("outer")
    mine = SeparateStack()
    Stack.push("inside")
    with mine:
        assert Stack.get_stack() == ["outer"]
        Stack.push("outside")
    assert Stack.get_stack() == ["outer", "inside"]
    Stack.push("later")
    mine.swap()
    assert Stack.get_stack() == ["outer", "outside"]
    copied = Context()
    copied.run(mine.swap)
    assert copied.run(Stack.get_stack) == ["outer", "inside", "later"]
    copied.run(mine.swap)
    assert copied.run(Stack.is_empty)
    assert Stack.get_stack() == ["outer", "outside"]
