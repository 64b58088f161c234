"""Tables: of rich on a terminal, padded lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from prefactor_core.cli.terminal import encodable, is_terminal, say

_FIRST_WIDTH: Final = 32
"""Columns for the first cell of a row and the text below it: a PFID fits in."""


class Column(NamedTuple):
    """A column; ``is_number``: its cells stand at the right."""

    title: str
    is_number: bool = False


class Row(NamedTuple):
    """A row. ``below``: text that stands below the first cell on a terminal, and last in a pipe;
    ``style``: of that text."""

    cells: Sequence[str]
    below: str = ""
    style: str = "dim"


def print_heading(text: str) -> None:
    """Print a line above a table."""
    if is_terminal():
        Console().print(_text(text, "bold"))
    else:
        say(text)


def print_table(columns: Sequence[Column], rows: Sequence[Row], *, below: str = "") -> None:
    """Print ``rows``; ``below`` is the title of the text below the first cells.

    A pipe gets whole lines. A terminal that is too narrow for the table gets a block of lines for
    each row.
    """
    if not is_terminal():
        for padded in _padded(columns, rows, below):
            say(padded)
        return
    console = Console()
    table = _table(columns, rows, below)
    unbounded = console.options.update(max_width=1_000)
    if Measurement.get(console, unbounded, table).minimum <= console.width:
        console.print(table)
    else:
        for line in _blocks(columns, rows):
            console.print(line)


def _table(columns: Sequence[Column], rows: Sequence[Row], below: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    first, *others = columns
    title = Text(first.title)
    if below:
        title.append("\n").append(below, "dim")
    table.add_column(title, min_width=_FIRST_WIDTH, overflow="fold")
    for place, column in enumerate(others, 1):
        table.add_column(
            column.title.replace(" ", "\n"),
            justify="right" if column.is_number else "left",
            # Else the longest word is the least width, in spite of no_wrap.
            min_width=max(cell_len(encodable(row.cells[place])) for row in rows),
            no_wrap=True,
        )
    for row in rows:
        head, *cells = map(_text, row.cells)
        if row.below:
            head.append("\n").append(_text(row.below, row.style))
        table.add_row(head, *cells)
    return table


def _padded(columns: Sequence[Column], rows: Sequence[Row], below: str) -> Iterator[str]:
    titles = Row([column.title for column in columns], below)
    lines = [[*row.cells, row.below] for row in chain([titles], rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    is_number = [*(column.is_number for column in columns), False]
    for line in lines:
        yield "  ".join(map(_pad, line, widths, is_number)).rstrip()


def _pad(cell: str, width: int, at_the_left: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if at_the_left else cell + blanks


def _blocks(columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[Text]:
    for row in rows:
        head, *cells = row.cells
        yield _text(head, "bold")
        if row.below:
            yield _text(row.below, row.style)
        for column, cell in zip(columns[1:], cells, strict=True):
            if cell:
                yield _text(f"  {column.title}: {cell}")


def _text(text: str, style: str = "") -> Text:
    return Text(encodable(text), style, overflow="fold")
