"""What is kept of an exception: its type, its message and where it was raised."""

from __future__ import annotations

import json
import threading

import pytest

from prefactor_core.capture import capture
from prefactor_core.error_description import describe_error


class ToolError(Exception):
    pass


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_an_error_is_described_by_type_message_and_stacktrace() -> None:
    cause = raised(KeyError("city"))
    described = describe_error(raised(ValueError("no such city"), cause))
    assert (described["type"], described["message"]) == ("ValueError", "no such city")
    stacktrace = str(described["stacktrace"])
    assert stacktrace.index("KeyError: 'city'") < stacktrace.index("ValueError: no such city")
    assert "raise error from cause" in stacktrace
    assert described.keys() == {"type", "message", "stacktrace"}


def test_the_type_of_an_error_that_is_not_builtin_has_its_module() -> None:
    assert describe_error(ToolError())["type"] == f"{__name__}.ToolError"


def test_describing_an_error_leaves_it_as_it_is() -> None:
    cause = KeyError("city")
    error = raised(ToolError("x"), cause)
    traceback = error.__traceback__
    describe_error(error)
    assert (error.__cause__, error.__traceback__, error.args) == (cause, traceback, ("x",))


class RaisingTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NumberTextError(Exception):
    def __str__(self) -> str:
        return 7


class RaisingNotesError(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


@pytest.mark.parametrize(
    "error",
    [
        RaisingTextError(),
        NumberTextError(),
        RaisingNotesError("x"),
        ValueError("\ud800"),
        ExceptionGroup("many", [RaisingTextError(), ValueError()]),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_can_be_described_and_captured(error: BaseException) -> None:
    described = json.loads(bytes(capture(describe_error(raised(error)))))
    assert described["type"].endswith(type(error).__qualname__)
    assert all(isinstance(part, str) for part in described.values())


@pytest.mark.parametrize("error", [RaisingTextError(), NumberTextError()])
def test_an_error_without_a_text_is_unprintable(error: Exception) -> None:
    assert describe_error(error)["message"] == "<unprintable>"


def test_a_slow_text_of_an_error_leaves_its_traceback() -> None:
    gate, asked = threading.Event(), []

    class SlowError(Exception):
        def __str__(self) -> str:
            asked.append(1)
            gate.wait()
            return "late"

    try:
        described = describe_error(raised(SlowError()))
    finally:
        gate.set()
    assert described["message"] == f"<slow {SlowError.__qualname__}>"
    assert "raise error from cause" in str(described["stacktrace"])
    assert asked == [1]
