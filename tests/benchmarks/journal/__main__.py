"""``python -m benchmarks.journal``: measure a journal, print the tables and the goals."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from rich.console import Console

from benchmarks.goals import Judgement, at_least, at_most
from benchmarks.journal.appends import measure_appends
from benchmarks.journal.delivery import measure_folder, measure_throughput
from benchmarks.journal.replay import Replayed
from benchmarks.journal.spans import measure_paced, measure_tight
from benchmarks.results import Spread
from benchmarks.serving import ServerProcess, serve
from benchmarks.tables import make_console, show_goals, show_rows

_PARTS = ("span", "append", "replay", "throughput", "folder")
_LOOPS = ("asyncio", "trio")
_FEW, _MANY = 20_000, 200_000


class Measuring:
    """Measures the parts, prints a table of each, and judges the goals.

    ``folder``: for the journals. ``quick``: fewer rounds.
    """

    def __init__(self, console: Console, server: ServerProcess, folder: Path, quick: bool) -> None:
        self._console = console
        self._server = server
        self._folder = folder
        self._quick = quick
        self.judgements: list[Judgement] = []

    def span(self) -> None:
        blocks, rows = 9 if self._quick else 41, {}
        for loop in _LOOPS:
            for name, measure, number in (
                ("one after another", measure_tight, blocks),
                ("one each millisecond", measure_paced, 5 if self._quick else 9),
            ):
                self._server.prepare(0.0)
                cost = anyio.run(measure, self._server, self._folder, number, backend=loop)
                rows[f"{name}, {loop}"] = {
                    "median µs, without": cost.median,
                    "with a journal": cost.median_added,
                    "p99 µs, without": cost.p99,
                    "with a journal ": cost.p99_added,
                }
                if measure is measure_tight:
                    self.judgements += [
                        at_most(f"a span, {loop}: <= 5 µs more", cost.median_added, 5),
                        at_most(f"p99 of a span, {loop}: <= 15 µs more", cost.p99_added, 15),
                    ]
        show_rows(
            self._console,
            "what a journal adds to a `with` span: the quietest quarter of the blocks",
            rows,
        )

    def append(self) -> None:
        quiet, pressed = measure_appends(self._folder, 2 if self._quick else 8)
        rows = {
            name: {
                "median µs": appends.median,
                "p99": appends.p99,
                "p99.9": appends.p999,
                "largest": appends.largest,
                "p99.9 without the write": appends.encoded_p999,
                "MB/s of the other process": appends.load,
            }
            for name, appends in (("quiet disk", quiet), ("its queue is full", pressed))
        }
        show_rows(self._console, "one append of 1.2 kB, over blocks of 20,000", rows)
        self.judgements.append(
            at_most("p99.9 of an append, the disk's queue full: <= 200 µs", pressed.p999, 200)
        )

    def replay(self) -> None:
        rounds = 1 if self._quick else 5
        rows: dict[str, dict[str, Spread | float | None]] = {}
        most: dict[int, float] = {}
        for operations in (_FEW, _MANY):
            journals = self._record(operations)
            taken: dict[str, list[Replayed]] = {loop: [] for loop in _LOOPS}
            for _ in range(rounds):
                for loop in _LOOPS:
                    taken[loop].append(self._replay(journals, loop))
            for loop, figures in taken.items():
                rows[f"{operations:,} operations, {loop}"] = {
                    "operations/s": Spread.of([one.per_second for one in figures]),
                    "read s": Spread.of([one.read_s for one in figures]),
                    "to the batch s": Spread.of([one.batch_s for one in figures]),
                    "CPU µs/operation": Spread.of([one.cpu_us for one in figures]),
                    "settle s": Spread.of([one.settle_s for one in figures]),
                    "MB more": Spread.of([one.added_mb for one in figures]),
                }
                if operations == _MANY:
                    self.judgements.append(
                        at_least(
                            f"replay of {_MANY:,} operations, {loop}: >= 100,000/s",
                            Spread.of([one.per_second for one in figures]),
                            100_000,
                        )
                    )
            most[operations] = max(one.added_mb for of in taken.values() for one in of)
        show_rows(self._console, "replay, from the file to the batch", rows)
        grown = most[_MANY] - most[_FEW]
        pair = f" MB ({most[_FEW]:.1f} to {most[_MANY]:.1f})"
        goal = f"memory of the replay: {_MANY:,} operations within 20 MB of {_FEW:,}"
        self.judgements.append(at_most(goal, Spread.of([grown]), 20, pair))

    def _record(self, operations: int) -> Path:
        """The folder of a journal that a dead process has left."""
        self._server.prepare(0.0)
        folder = self._folder / f"left-{operations}"
        arguments = [self._server.api_url, str(folder), str(operations)]
        subprocess.run([sys.executable, "-m", "benchmarks.journal.dying", *arguments], check=True)
        return folder

    def _replay(self, journals: Path, loop: str) -> Replayed:
        folder = self._folder / "replayed"
        # A replay deletes its journal, and changes no file of it: links are enough.
        shutil.copytree(journals, folder, copy_function=os.link)
        arguments = [loop, str(folder)]
        output = subprocess.run(
            [sys.executable, "-m", "benchmarks.journal.replay", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        shutil.rmtree(folder)
        return Replayed(**json.loads(output))

    def throughput(self) -> None:
        rounds, rows = 2 if self._quick else 16, {}
        for loop in _LOOPS:
            measured = anyio.run(
                measure_throughput, self._server, self._folder, rounds, 10_000, backend=loop
            )
            rows[loop] = {
                "spans/s without": measured.without,
                "with a journal": measured.journaled,
                "ratio": measured.ratio,
                "lost": measured.lost,
            }
            goal = f"throughput, {loop}: >= 0.8 of that without a journal"
            self.judgements.append(at_least(goal, measured.ratio, 0.8))
        show_rows(self._console, "10,000 spans of 50 tasks, to the end of the scope", rows)

    def folder(self) -> None:
        rows = {}
        for loop in _LOOPS:
            folder = anyio.run(
                measure_folder, self._server, self._folder, 5 if self._quick else 30, backend=loop
            )
            rows[loop] = {
                "spans": folder.spans,
                "MB written": folder.written_mb,
                "most files": folder.most_files,
                "most MB": folder.most_mb,
                "files left": folder.left,
            }
            goal = f"the folder at 2,000 spans/s, {loop}: <= 3 files, none left in the end"
            reached = folder.most_files <= 3 and folder.left == 0
            figure = f"{folder.most_files} files, {folder.most_mb:.1f} MB, {folder.left} left"
            self.judgements.append(Judgement(goal, figure, reached))
        show_rows(self._console, "an hour in miniature: files of 1 MiB in place of 8", rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(
        prog="just bench-journal", description="Measures the cost of a journal and its replay."
    )
    parser.add_argument("--quick", action="store_true", help="a small run of about a minute")
    parser.add_argument("--only", action="append", choices=_PARTS, help="several times")
    parser.add_argument("--folder", type=Path, help="where to put the journals: on which disk")
    options = parser.parse_args(arguments)
    console = make_console()
    with serve() as server, TemporaryDirectory(dir=options.folder) as folder:
        measuring = Measuring(console, server, Path(folder), options.quick)
        try:
            for part in options.only or _PARTS:
                sys.stderr.write(f"{part}\n")
                getattr(measuring, part)()
        except KeyboardInterrupt:
            sys.stderr.write("interrupted: the goals are those measured until now\n")
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        console.print(f"processes that ran in the last minute: {load:.1f} on {os.cpu_count()}")
        show_goals(console, measuring.judgements)


if __name__ == "__main__":
    main()
