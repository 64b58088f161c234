"""Leave a cancel scope without a ``with`` block."""

from __future__ import annotations

import anyio


def leave_scope(scope: anyio.CancelScope, error: BaseException | None) -> BaseException | None:
    """Leave ``scope``, whose body ended with ``error``; return the exception that remains.

    That is ``error`` itself, unless the scope was cancelled. Then the cancellation ends here, and
    only the other errors of a group remain.
    """
    if error is None:
        scope.__exit__(None, None, None)
        return None
    try:
        return None if scope.__exit__(type(error), error, error.__traceback__) else error
    except (Exception, BaseExceptionGroup) as rest:
        if not isinstance(error, BaseExceptionGroup):
            raise  # scopes were left in the wrong order
        return rest
