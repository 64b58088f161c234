"""Termination: which callbacks run, when, and how often."""

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
    reasons: list[str] = []
    termination.watch(reasons.append)
    assert reasons == []
    assert termination.terminate("over budget")
    assert not termination.terminate("again")
    assert reasons == ["over budget"]
    assert termination.reason == "over budget"


def test_a_callback_that_is_added_late_is_called_at_once() -> None:
    termination = Termination()
    termination.terminate("over budget")
    reasons: list[str] = []
    termination.watch(reasons.append)
    assert reasons == ["over budget"]


@pytest.mark.parametrize("reason", [None, ""])
def test_a_run_that_is_stopped_without_a_reason_has_one_all_the_same(reason: str | None) -> None:
    termination = Termination()
    reasons: list[str] = []
    termination.watch(reasons.append)
    assert termination.terminate(reason)
    assert reasons == [termination.reason] == [NO_REASON]


def test_a_run_that_has_ended_is_stopped_no_more() -> None:
    termination = Termination()
    reasons: list[str] = []
    termination.watch(reasons.append)
    termination.run_ended()
    termination.watch(reasons.append)
    assert not termination.terminate("over budget")
    assert (termination.reason, reasons) == (None, [])
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
    reasons: list[str] = []

    def fail(reason: str) -> None:
        raise ValueError(reason)

    termination.watch(fail)
    termination.watch(reasons.append)
    assert termination.terminate("over budget")
    termination.watch(fail)
    assert reasons == ["over budget"]
    for record in caplog.records:
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith("a callback of on_terminate() raised")
        assert record.exc_info is not None
    assert len(caplog.records) == 2


def test_a_callback_may_watch_itself() -> None:
    termination = Termination()
    reasons: list[str] = []
    termination.watch(lambda reason: termination.watch(reasons.append))
    termination.terminate("over budget")
    assert reasons == ["over budget"]


@pytest.mark.parametrize(
    "error", [SystemExit(1), GeneratorExit(), asyncio.CancelledError(), BaseException("no")]
)
def test_an_exception_of_a_callback_does_not_reach_its_caller(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reason: str) -> None:
        raise error

    termination = Termination()
    reasons: list[str] = []
    termination.watch(fail)
    termination.watch(reasons.append)
    assert termination.terminate("over budget")
    assert reasons == ["over budget"]
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
    assert termination.terminate("over budget")
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
    termination.terminate("over budget")
    if over:
        termination.run_ended()
    assert termination.stops_spans is stops


@given(st.lists(st.sampled_from(["terminate", "watch", "end"])))
def test_every_callback_gets_the_first_reason_once_or_never(steps: list[str]) -> None:
    termination = Termination()
    reasons: list[list[str]] = []
    terminated: str | None = None
    over = False
    # For each watcher, the reasons that it is to get.
    expected: list[list[str]] = []
    for number, step in enumerate(steps):
        if step == "terminate":
            news = terminated is None and not over
            assert termination.terminate(f"reason {number}") is news
            if news:
                terminated = f"reason {number}"
                expected = [[terminated] for _ in expected]
        elif step == "watch":
            reasons.append([])
            termination.watch(reasons[-1].append)
            expected.append([] if terminated is None else [terminated])
        else:
            termination.run_ended()
            over = True
        assert reasons == expected
        assert termination.reason == terminated
