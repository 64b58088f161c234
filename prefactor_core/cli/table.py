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
"""Columns for the first cell of a row and the text below it; a PFID fits in."""


class Column(NamedTuple):
    """A column; ``is_number``: its cells stand at the right."""

    title: str
    is_number: bool = False


class Row(NamedTuple):
    """A row. ``below``: text that stands below the first cell on a terminal, and last in a pipe.

    ``style``: of the last cell.
    """

    cells: Sequence[str]
    below: str = ""
    style: str = ""


def print_table(columns: Sequence[Column], rows: Sequence[Row], *, below: str = "") -> None:
    """Print ``rows``; ``below`` is the title of the text below the first cells.

    A pipe gets whole lines. A terminal that is too narrow for the table gets a block of lines for
    each row.
    """
    if not is_terminal():
        for line in _padded(columns, rows, below):
            say(line)
        return
    console = Console()
    table = _table(columns, rows)
    unbounded = console.options.update(max_width=1_000)
    if Measurement.get(console, unbounded, table).minimum <= console.width:
        console.print(table)
    else:
        for line in _blocks(columns, rows, below):
            console.print(Text(encodable(line), overflow="fold"))


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    first, *others = columns
    table.add_column(first.title, overflow="fold", min_width=_FIRST_WIDTH)
    for column in others:
        table.add_column(
            column.title, no_wrap=True, justify="right" if column.is_number else "left"
        )
    for row in rows:
        head, *middle, last = (encodable(cell) for cell in row.cells)
        below = f"\n{encodable(row.below)}" if row.below else ""
        table.add_row(
            Text.assemble(head, (below, "dim")), *map(Text, middle), Text(last, row.style)
        )
    return table


def _padded(columns: Sequence[Column], rows: Sequence[Row], below: str) -> Iterator[str]:
    titles = Row([column.title for column in columns], below)
    lines = [[*row.cells, row.below] for row in chain([titles], rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    is_number = [*(column.is_number for column in columns), False]
    for line in lines:
        cells = (
            " " * (width - cell_len(cell)) + cell
            if right
            else cell + " " * (width - cell_len(cell))
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _blocks(columns: Sequence[Column], rows: Sequence[Row], below: str) -> Iterator[str]:
    for row in rows:
        head, *others = row.cells
        yield head
        if row.below:
            yield f"  {below}: {row.below}"
        for column, cell in zip(columns[1:], others, strict=True):
            if cell:
                yield f"  {column.title}: {cell}"
