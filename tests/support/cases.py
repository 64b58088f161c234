"""Many cases of a pure test in one test, which names the case that fails."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.util import safe_repr


@contextmanager
def _named(case: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {safe_repr(case)[:1000]}")
        raise


def every_case(
    names: str | tuple[str, ...], values: Iterable[Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As ``pytest.mark.parametrize``, but one test that loops: all cases share its fixtures."""
    cases = [
        {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))
        for value in values
    ]

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(test):

            async def all_cases(**fixtures: Any) -> None:
                for case in cases:
                    with _named(case):
                        await test(**case, **fixtures)
        else:

            def all_cases(**fixtures: Any) -> None:
                for case in cases:
                    with _named(case):
                        test(**case, **fixtures)

        signature = inspect.signature(test)
        left = [p for name, p in signature.parameters.items() if name not in cases[0]]
        functools.update_wrapper(all_cases, test)
        all_cases.__signature__ = signature.replace(parameters=left)  # type: ignore[union-attr]
        return all_cases

    return decorate
