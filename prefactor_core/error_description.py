"""What is kept of an exception that ended a span or a run."""

from __future__ import annotations

import traceback

from prefactor_core.markers import UNPRINTABLE, full_type_name, has_quick_text, slow, utf8
from prefactor_core.timebox import Timebox, TooSlowError


class ErrorDescription(dict[str, object]):
    """What a failed span keeps of an exception, told from what an agent calls an error."""

    __slots__ = ()


def describe_error(error: BaseException) -> ErrorDescription:
    """What a failed span keeps of an exception: type, message and stacktrace, as text."""
    timebox = Timebox()
    message = _message_of(error, timebox)
    try:
        lines = timebox.call(lambda: traceback.format_exception(error))
    except Exception:
        # One of its causes cannot say what it is, or not in time.
        try:
            lines = traceback.format_tb(error.__traceback__)
        except Exception:  # a loader that cannot show its source, or no stack to look at it
            lines = []
    return ErrorDescription(
        type=full_type_name(type(error)), message=message, stacktrace="".join(lines)
    )


def _message_of(error: BaseException, timebox: Timebox) -> str:
    """``str(error)``, or a marker."""
    try:
        text = str(error) if has_quick_text(error) else timebox.call(lambda: str(error))
        return utf8(str.__str__(text))
    except TooSlowError:
        return slow(type(error))
    except Exception:
        return UNPRINTABLE
