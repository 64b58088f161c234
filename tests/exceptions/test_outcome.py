"""The outcome of a body, by the exception that left it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import cache

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import for_each

from prefactor_core.exceptions.outcome import outcome_of

FAILURES = [ValueError("x"), TimeoutError(), SystemExit(0), StopAsyncIteration(), BaseException()]


@cache
def cancellation_of(backend: str) -> BaseException:
    """The exception that a cancelled body gets on this backend."""
    caught: list[BaseException] = []

    async def be_cancelled() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class() as error:
                caught.append(error)
                raise

    anyio.run(be_cancelled, backend=backend)
    return caught[0]


def stops() -> list[BaseException]:
    backends = [cancellation_of("asyncio"), cancellation_of("trio")]
    return [*backends, asyncio.CancelledError("by hand"), KeyboardInterrupt(), GeneratorExit()]


def groups_of(errors: st.SearchStrategy[BaseException]) -> st.SearchStrategy[BaseException]:
    return st.recursive(
        errors,
        lambda inner: st.builds(BaseExceptionGroup, st.just("g"), st.lists(inner, min_size=1)),
        max_leaves=10,
    )


stopping = groups_of(st.deferred(lambda: st.sampled_from(stops())))
failing = groups_of(st.sampled_from(FAILURES))


async def test_a_cancelled_body_is_cancelled_while_its_loop_runs() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException as error:
            outcome = outcome_of(error)
            raise
    assert scope.cancelled_caught
    assert outcome == "cancelled"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_body_is_cancelled_where_no_loop_runs(backend: str) -> None:
    assert outcome_of(cancellation_of(backend)) == "cancelled"


def test_a_body_that_ends_without_an_error_is_complete() -> None:
    assert outcome_of(None) == "complete"


@for_each("stop", [KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_ctrl_c_and_a_generator_closed_early_are_cancelled(stop: BaseException) -> None:
    assert outcome_of(stop) == "cancelled"


@for_each("error", FAILURES, ids=repr)
def test_every_other_exception_is_failed(error: BaseException) -> None:
    assert outcome_of(error) == "failed"


@given(stopping)
def test_a_group_of_nothing_but_stops_is_cancelled(error: BaseException) -> None:
    assert outcome_of(error) == "cancelled"


@given(stopping, failing)
def test_one_failure_anywhere_in_a_group_makes_it_failed(
    stop: BaseException, failure: BaseException
) -> None:
    assert outcome_of(failure) == "failed"
    for members in ([stop, failure], [failure, stop]):
        assert outcome_of(BaseExceptionGroup("outer", members)) == "failed"


def test_outcome_of_does_not_import_trio() -> None:
    program = """
import asyncio, sys
from prefactor_core.exceptions.outcome import outcome_of
assert outcome_of(asyncio.CancelledError()) == "cancelled"
assert "trio" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class Underivable(ExceptionGroup[Exception]):
    """A group whose derive() is wrong, as one with a constructor of its own often is."""

    def __new__(cls, errors: list[Exception], extra: int) -> Underivable:
        return super().__new__(cls, "group", errors)

    def derive(self, excs: object) -> Underivable:
        return Underivable(excs)  # type: ignore[call-arg, arg-type]


def test_a_group_that_cannot_be_split_is_examined_too() -> None:
    assert outcome_of(Underivable([ValueError(), OSError()], 1)) == "failed"
