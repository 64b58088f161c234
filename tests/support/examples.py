"""How many examples Hypothesis makes, by profile."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> int:
    """``number`` with a profile of 100 examples; in proportion with another one."""
    default = settings.default
    assert default is not None
    return max(1, number * default.max_examples // 100)
