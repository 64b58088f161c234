"""Termination: who hears that a run was stopped, when, and how often."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.export.termination import NO_REASON, Termination


def test_a_callback_gets_the_reason_once() -> None:
    termination = Termination()
    told: list[str] = []
    termination.watch(told.append)
    assert told == []
    assert termination.throw("over budget")
    assert not termination.throw("again")
    assert told == ["over budget"]
    assert termination.reason == "over budget"


def test_a_callback_that_is_added_late_is_called_at_once() -> None:
    termination = Termination()
    termination.throw("over budget")
    told: list[str] = []
    termination.watch(told.append)
    assert told == ["over budget"]


@pytest.mark.parametrize("reason", [None, ""])
def test_a_run_that_is_stopped_without_a_reason_has_one_all_the_same(reason: str | None) -> None:
    termination = Termination()
    told: list[str] = []
    termination.watch(told.append)
    assert termination.throw(reason)
    assert told == [termination.reason] == [NO_REASON]


def test_a_run_that_has_ended_is_stopped_no_more() -> None:
    termination = Termination()
    told: list[str] = []
    termination.watch(told.append)
    termination.run_ended()
    termination.watch(told.append)
    assert not termination.throw("over budget")
    assert (termination.reason, told) == (None, [])
    assert not termination.stops_spans


def test_a_run_that_has_ended_keeps_no_callback() -> None:
    class Callback:
        def __call__(self, reason: str) -> None:
            pass

    def watched() -> weakref.ref[Callback]:
        callback = Callback()
        termination.watch(callback)
        return weakref.ref(callback)

    termination = Termination()
    early = watched()
    assert early() is not None
    termination.run_ended()
    assert (early(), watched()()) == (None, None)


def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    termination = Termination()
    told: list[str] = []

    def fail(reason: str) -> None:
        raise ValueError(reason)

    termination.watch(fail)
    termination.watch(told.append)
    assert termination.throw("over budget")
    termination.watch(fail)
    assert told == ["over budget"]
    for record in caplog.records:
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith("a callback of on_terminate() raised")
        assert record.exc_info is not None
    assert len(caplog.records) == 2


def test_a_callback_may_watch_itself() -> None:
    termination = Termination()
    told: list[str] = []
    termination.watch(lambda reason: termination.watch(told.append))
    termination.throw("over budget")
    assert told == ["over budget"]


@pytest.mark.parametrize(
    "error", [SystemExit(1), GeneratorExit(), asyncio.CancelledError(), BaseException("no")]
)
def test_an_exception_of_a_callback_does_not_reach_its_caller(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reason: str) -> None:
        raise error

    termination = Termination()
    told: list[str] = []
    termination.watch(fail)
    termination.watch(told.append)
    assert termination.throw("over budget")
    assert told == ["over budget"]
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [error]


def test_a_thread_that_adds_a_callback_meanwhile_calls_only_its_own() -> None:
    callers: dict[str, int] = {}

    def note(name: str) -> None:
        callers[name] = threading.get_ident()

    def watch_elsewhere(reason: str) -> None:
        thread = threading.Thread(target=termination.watch, args=(lambda _: note("late"),))
        thread.start()
        thread.join(60)

    termination = Termination()
    termination.watch(watch_elsewhere)
    termination.watch(lambda _: note("early"))
    assert termination.throw("over budget")
    assert callers["early"] == threading.get_ident() != callers["late"]


@pytest.mark.parametrize(
    ("has_scope", "over", "stops"),
    [(False, False, True), (False, True, True), (True, False, False), (True, True, True)],
)
def test_spans_end_with_the_scope_and_at_once_without_one(
    has_scope: bool, over: bool, stops: bool
) -> None:
    termination = Termination()
    termination.has_scope = has_scope
    assert not termination.stops_spans
    termination.throw("over budget")
    if over:
        termination.run_ended()
    assert termination.stops_spans is stops


@given(st.lists(st.sampled_from(["throw", "watch", "end"])))
def test_every_callback_gets_the_first_reason_once_or_never(steps: list[str]) -> None:
    termination = Termination()
    told: list[list[str]] = []
    thrown: str | None = None
    over = False
    # For each watcher, what it is to be told.
    expected: list[list[str]] = []
    for number, step in enumerate(steps):
        if step == "throw":
            news = thrown is None and not over
            assert termination.throw(f"reason {number}") is news
            if news:
                thrown = f"reason {number}"
                expected = [[thrown] for _ in expected]
        elif step == "watch":
            told.append([])
            termination.watch(told[-1].append)
            expected.append([] if thrown is None else [thrown])
        else:
            termination.run_ended()
            over = True
        assert told == expected
        assert termination.reason == thrown
