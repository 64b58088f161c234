"""Durations as text."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """A duration in the units that suit it: ``0.6 ms``, ``850.2 ms``, ``1.50 s``, ``12.3 s``,
    ``2 min 05 s``, ``1 h 02 min``, ``3 d 4 h``. From a second on, the viewer's pages show
    them in the same form, and may round a half the other way."""
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    # Each bound is where the text would be rounded to one of the next unit.
    if seconds < 0.99995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    if (whole := round(seconds)) < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if (minutes := round(seconds / 60)) < 1440:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
