"""Leaving a cancel scope by hand, where a ``with`` block cannot stand."""

from __future__ import annotations

import anyio


def leave_scope(scope: anyio.CancelScope, error: BaseException | None) -> BaseException | None:
    """Leave ``scope``, whose body ended with ``error``; what goes on of it.

    That is ``error`` itself, unless the scope was cancelled: then the cancellation ends here,
    and of a group of errors the others go on.
    """
    if error is None:
        scope.__exit__(None, None, None)
        return None
    try:
        return None if scope.__exit__(type(error), error, error.__traceback__) else error
    except (Exception, BaseExceptionGroup) as rest:
        if not isinstance(error, BaseExceptionGroup):
            raise  # scopes were left in a wrong order
        return rest
