"""What is kept of an exception that ended a span or a run."""

from __future__ import annotations

import traceback

from prefactor_core.jsonable import full_type_name, message_of
from prefactor_core.timebox import Timebox


class ErrorDescription(dict[str, object]):
    """What a failed span keeps of an exception, told from what an agent calls an error."""

    __slots__ = ()


def describe_error(error: BaseException) -> ErrorDescription:
    """What a failed span keeps of an exception: type, message and stacktrace, as text."""
    timebox = Timebox()
    message = message_of(error, timebox)
    try:
        lines = timebox.call(type(error), lambda: traceback.format_exception(error))
    except Exception:
        # One of its causes cannot say what it is, or not in time.
        try:
            lines = traceback.format_tb(error.__traceback__)
        except Exception:  # a loader that cannot show its source, or no stack to look at it
            lines = []
    return ErrorDescription(
        type=full_type_name(type(error)), message=message, stacktrace="".join(lines)
    )
