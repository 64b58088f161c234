"""Loops over cases in one test."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def case(*values: object) -> Generator[None]:
    """Add ``values`` to the error of a case that fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {', '.join(map(repr, values))}"[:500])
        raise
