"""Loops over the cases of one test, which name the case that fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def case(*values: object) -> Generator[None]:
    """Add ``values`` to the error of a case that fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {', '.join(map(repr, values))}"[:500])
        raise


def for_each(
    parameters: str | Sequence[str],
    cases: Iterable[Any],
    *,
    ids: Callable[[Any], object] | Sequence[str] = repr,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call the test with each of ``cases``, in one test; an error names the case that failed.

    It is written like ``pytest.mark.parametrize``, without an entry in the report for each case,
    and can be stacked like that. ``ids``: the name of a case by its values, or the names of all.
    """
    keys = parameters.split(", ") if isinstance(parameters, str) else [*parameters]
    matrix = [(values,) if len(keys) == 1 else tuple(values) for values in cases]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        # Without functools.wraps(): pytest would take the arguments for fixtures.
        def run(**others: Any) -> None:
            for number, values in enumerate(matrix):
                name = [ids(value) for value in values] if callable(ids) else [ids[number]]
                with case("-".join(map(str, name))):
                    test(**dict(zip(keys, values, strict=True)), **others)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate
