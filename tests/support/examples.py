"""How many examples Hypothesis makes, by profile."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> int:
    """``number`` by default; as much less or more as the profile has less or more than 100."""
    default = settings.default
    assert default is not None
    return max(1, number * default.max_examples // 100)
