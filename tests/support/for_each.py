"""for_each: a matrix of pure values as a loop inside of one test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any


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
    matrix = [(case,) if len(keys) == 1 else tuple(case) for case in cases]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        # Without functools.wraps(): pytest would take the arguments for fixtures.
        def run(**others: Any) -> None:
            for number, case in enumerate(matrix):
                try:
                    test(**dict(zip(keys, case, strict=True)), **others)
                except BaseException as error:
                    name = (
                        "-".join(str(ids(value)) for value in case)
                        if callable(ids)
                        else ids[number]
                    )
                    error.add_note(f"in the case {name}")
                    raise

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate
