"""Print lines: styled and cut at the width of a terminal, whole in a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.text import Text

from prefactor_core.cli.run_lines import Line
from prefactor_core.cli.terminal import encodable, is_terminal, say

_LEAST_COLUMNS: Final = 40
"""Columns for the text of a line, however deep in the tree it stands."""


def print_lines(lines: Iterable[Line], *, is_cut: bool = True) -> None:
    """Print ``lines``; a terminal cuts them at its width if ``is_cut``, and else folds them."""
    if not is_terminal():
        for line in lines:
            say(line.plain)
        return
    console = Console()
    for line in lines:
        console.print(fitted(line, console.width) if is_cut else styled(line), soft_wrap=True)


def terminal_width() -> int | None:
    """The columns of the terminal; None if the standard output is none."""
    return Console().width if is_terminal() else None


def styled(line: Line) -> Text:
    """The line as rich prints it."""
    text = Text(encodable(line.branches), no_wrap=True)
    for part, style in line.parts:
        text.append(encodable(part), style or None)
    return text


def fitted(line: Line, width: int) -> Text:
    """The line, cut at ``width`` columns, or later if its branches leave too few for its text."""
    text = styled(line)
    columns = max(width, len(line.branches) + _LEAST_COLUMNS)
    # Some encodings need three characters for the ellipsis.
    text.truncate(columns + 1 - len(encodable("…")), overflow="ellipsis")
    return text
