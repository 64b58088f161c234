"""How a command runs, speaks and fails.

It speaks without the extras of the package, too: click and rich are imported where they are used.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Final, TextIO, TypeVar, TypeVarTuple, cast

import anyio
import msgspec

from prefactor_core.exceptions import PrefactorCoreError

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")

# Replacements for terminals whose encoding lacks these characters.
_PLAIN: Final = {"→": "->", "…": "...", "⚠": "!", "✕": "x", "├": "|", "└": "`", "│": "|", "─": "-"}


def write_any_text() -> None:
    """Let the standard output accept a recorded text whose characters its encoding lacks."""
    codecs.register_error("prefactor", _in_plain)
    stdout: TextIO = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="prefactor")


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(plain), error.end


def encodable(text: str) -> str:
    """``text`` as the standard output shows it: for what counts its columns before."""
    encoding = sys.stdout.encoding
    return text.encode(encoding, "prefactor").decode(encoding)


def say(text: str) -> None:
    """Write a line to the standard output, at once: a reader may follow it."""
    if sys.stdout is not None:  # closed when the process started
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def print_json(value: object) -> None:
    """Write JSON to the standard output; iterators in it become lists, an item on each line."""
    if sys.stdout is not None:
        is_unicode = sys.stdout.encoding.lower().startswith("utf")
        for part in _json(value):
            sys.stdout.write(part if is_unicode or part.isascii() else _escaped(part))
        sys.stdout.write("\n")
        sys.stdout.flush()


def _json(value: object) -> Iterator[str]:
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if isinstance(value, Iterator):
        yield "["
        for place, item in enumerate(cast("Iterator[object]", value)):
            yield ",\n" if place else "\n"
            yield from _json(item)
        yield "]"
    elif any(isinstance(item, Iterator) for item in fields.values()):
        for place, (name, item) in enumerate(fields.items()):
            yield f'{", " if place else "{"}"{name}": '
            yield from _json(item)
        yield "}"
    else:
        yield msgspec.json.encode(value).decode()


def _escaped(text: str) -> str:
    return re.sub("[^ -~]+", lambda match: json.dumps(match[0])[1:-1], text)


def is_terminal() -> bool:
    """Whether the standard output is a terminal."""
    # None: closed when the process started.
    return sys.stdout is not None and sys.stdout.isatty()


@contextmanager
def progress(title: str) -> Generator[Callable[[int, int], None]]:
    """Show on the standard error, if that is a terminal, how much is done.

    The value is called with the amount that is done, and the whole. Nothing of it stays on the
    terminal.
    """
    # Here: the bare package has no rich.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def run(
    command: Callable[[*Arguments], Awaitable[Answer]],
    *arguments: *Arguments,
    backend: str = "asyncio",
) -> Answer:
    """Run ``command`` on an event loop; an error of this library ends the process in one line,
    Ctrl-C without a word, by the exit code 130."""
    try:
        with errors_in_one_line():
            return anyio.run(command, *arguments, backend=backend)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def errors_in_one_line() -> Generator[None]:
    """End the process with one line for an error of this library."""
    try:
        yield
    except PrefactorCoreError as error:
        from click import ClickException  # here: the bare package has no click

        raise ClickException(str(error)) from None
