"""What is wrong after a crash: the database and the journals against what was recorded."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from support.crash_agent import (
    DATABASE,
    JOURNALS,
    AnyFact,
    Ended,
    Finished,
    Opened,
    Rated,
    Registered,
)
from support.crash_processes import Death, Processes
from support.crash_scripts import Crash

from prefactor_core.journal.reader import asides

_ENDED = {"complete", "failed", "cancelled"}
_BAD_LINES = ("not expected", "Traceback", "damaged", "left alone", "no journal", "be written")
_TORN = "damaged: 0 records"  # by a kill in the middle of a write in another thread

Row = dict[str, Any]


@dataclass
class _Ends:
    """The end of a run or a span: ``status`` is that of one that was recorded; ``begun`` of one
    whose recording was not done."""

    status: str | None = None
    begun: str | None = None

    def note(self, fact: Finished | Ended) -> None:
        if fact.done:
            self.status = fact.status
        else:
            self.begun = fact.status

    def allows(self, status: str) -> bool:
        if self.status is not None:
            return status == self.status
        return status in ("failed", self.begun)


@dataclass
class _Span:
    opened: Opened
    is_certain: bool = False
    payloads: list[Row] = field(default_factory=list)
    end: _Ends = field(default_factory=_Ends)


@dataclass
class _Recorded:
    """What the agents have recorded. Runs and qualities: whether that is certain."""

    runs: dict[str, bool] = field(default_factory=dict)
    ends: defaultdict[str, _Ends] = field(default_factory=lambda: defaultdict(_Ends))
    spans: dict[str, _Span] = field(default_factory=dict)
    qualities: dict[tuple[str, str], bool] = field(default_factory=dict)

    def note(self, fact: AnyFact) -> None:
        match fact:
            case Registered(run=run):
                self.runs[run] = fact.done
            case Finished(run=run):
                self.ends[run].note(fact)
            case Opened(span=name):
                span = self.spans.setdefault(name, _Span(fact))
                span.is_certain |= fact.done
                span.payloads = [fact.payload] if fact.done else [*span.payloads, fact.payload]
            case Ended(span=name):
                self.spans[name].end.note(fact)
            case Rated(run=run, name=name):
                self.qualities[run, name] = fact.done

    def parent_of(self, span: _Span) -> str | None:
        """The nearest ancestor that the API takes."""
        parent = span.opened.parent
        while parent is not None and self.spans[parent].opened.kind == "refused":
            parent = self.spans[parent].opened.parent
        return parent


def play(processes: Processes, folder: Path, crash: Crash) -> list[str]:
    """What is wrong after a crash, in an empty folder."""
    deaths = processes.perform(folder, crash)
    problems = [*_problems(folder, crash, deaths)]
    if problems:
        problems += [
            f"process {file.stem} died at {file.read_text()}"
            for file in sorted(folder.glob("*.death"))
        ]
    return problems


def _problems(folder: Path, crash: Crash, deaths: list[Death]) -> Iterator[str]:
    recorded = _Recorded()
    for place, death in enumerate(deaths):
        log = (folder / f"{place}.log").read_text()
        if death.code not in (0, -9):
            yield f"process {place} ended with {death.code}: {log}"
        for line in log.splitlines():
            if any(bad in line for bad in _BAD_LINES) and _TORN not in line:
                yield f"process {place}: {line}"
        # The last line may be a part of one.
        for fact in (folder / f"{place}.facts").read_bytes().split(b"\n")[:-1]:
            recorded.note(msgspec.json.decode(fact, type=AnyFact))
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        database.row_factory = sqlite3.Row
        runs = [dict(row) for row in database.execute("SELECT * FROM agent_instances")]
        spans = [dict(row) for row in database.execute("SELECT * FROM agent_spans")]
    yield from _problems_of_runs(recorded, runs)
    yield from _problems_of_spans(recorded, crash, runs, spans)
    yield from _problems_of_times(spans, runs, deaths)
    yield from _problems_of_journals(recorded, folder / JOURNALS)


def _problems_of_runs(recorded: _Recorded, runs: list[Row]) -> Iterator[str]:
    names = [run["agent_id"] for run in runs]
    for name, is_certain in recorded.runs.items():
        if names.count(name) not in ((1,) if is_certain else (0, 1)):
            yield f"{name} is there {names.count(name)} times"
    for run in runs:
        name, status = run["agent_id"], run["status"]
        if name not in recorded.runs:
            yield f"{name} was never registered"
        elif not recorded.ends[name].allows(status):
            yield f"{name} is {status}: {recorded.ends[name]}"
        qualities = msgspec.json.decode(run["quality"])
        for (of, quality), is_certain in recorded.qualities.items():
            if of == name and (is_certain or quality in qualities):
                stored = qualities.pop(quality, None)
                if stored is None or {"name": quality} not in _dicts_in(stored):
                    yield f"{quality} of {name} is {stored}"
        if qualities:
            yield f"{name} has {qualities}"


def _dicts_in(value: Any) -> list[Any]:
    """The value, and the values in it."""
    return [value, *value.values()] if isinstance(value, dict) else [value]


def _problems_of_spans(
    recorded: _Recorded, crash: Crash, runs: list[Row], spans: list[Row]
) -> Iterator[str]:
    agents = {run["id"]: run["agent_id"] for run in runs}
    names = [span["schema_name"] for span in spans]
    by_id = {span["id"]: span["schema_name"] for span in spans}
    for name, span in recorded.spans.items():
        count, opened = names.count(name), span.opened
        if opened.kind == "refused":
            if count:
                yield f"{name} is there, and was refused"
        elif count not in ((1,) if span.is_certain else (0, 1)):
            yield f"{name} ({opened.kind}) is there {count} times"
    for row in spans:
        name, status = row["schema_name"], row["status"]
        if name not in recorded.spans:
            yield f"{name} was never opened"
            continue
        span = recorded.spans[name]
        kind = span.opened.kind
        if agents[row["agent_instance_id"]] != span.opened.run:
            yield f"{name} is in another run"
        parent = None if kind == "orphan" else recorded.parent_of(span)
        if by_id.get(row["parent_span_id"]) != parent:
            yield f"{name} is below {by_id.get(row['parent_span_id'])}, not {parent}"
        if not span.end.allows(status):
            yield f"{name} ({kind}) is {status}: {span.end}"
        payload = msgspec.json.decode(row["payload"])
        if kind == "large":
            if "$truncated" not in payload:
                yield f"{name} has the payload {payload}"
        elif payload not in span.payloads and not (kind == "late" and crash.report_at_once):
            yield f"{name} has the payload {payload}, not {span.payloads}"
        result = msgspec.json.decode(row["result_payload"] or "null") or {}
        if not _is_result(name, status, span.end, result):
            yield f"{name} is {status}, {span.end}, with the result {result}"


def _is_result(name: str, status: str, end: _Ends, result: Row) -> bool:
    error = result.get("error", {}).get("type")
    if end.status is None and error == "process_died":
        return status in ("failed", "cancelled")
    if status == "complete":
        return result in ({"name": name}, {})  # {}: of one that ended with its run, or was left
    if status == "failed":
        return str(error).endswith("PlannedError") or result == {"name": name}
    return error is None


def _problems_of_times(spans: list[Row], runs: list[Row], deaths: list[Death]) -> Iterator[str]:
    rows = {row["id"]: row for row in (*spans, *runs)}
    for row in rows.values():
        name = row.get("schema_name") or row["agent_id"]
        started, finished = row["started_at"], row["finished_at"]
        if finished is None or row["status"] not in _ENDED:
            yield f"{name} has not ended"
            continue
        if started is None:
            if row["status"] != "cancelled":
                yield f"{name} has not started, and is {row['status']}"
            continue
        if started > finished:
            yield f"{name} ended at {finished}, and started at {started}"
        place = int(name.split("-")[1])
        died = datetime.fromtimestamp(deaths[place].at / 1e9, UTC)
        if _time(finished) > died:
            yield f"{name} ended at {finished}, after the death of its process at {died}"
        parent = rows.get(row.get("parent_span_id")) or rows.get(row.get("agent_instance_id"))
        if parent is not None and not (parent["started_at"] or "") <= started:
            yield f"{name} started at {started}, before its parent or run"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _problems_of_journals(recorded: _Recorded, folder: Path) -> Iterator[str]:
    refused: set[str] = set()
    for journal in folder.iterdir():
        files = {file.name for file in journal.iterdir()}
        if files != {"lock", "refused.log"}:
            yield f"there is {journal.name} with {sorted(files)}"
            continue
        for _, aside in asides(journal):
            name = getattr(aside.operation, "schema_name", "")
            refused.add(name)
            if name and (
                name not in recorded.spans or recorded.spans[name].opened.kind != "refused"
            ):
                yield f"{aside} was given up"
    for name, span in recorded.spans.items():
        if span.opened.kind == "refused" and span.is_certain and name not in refused:
            yield f"{name} was refused, and is not kept"
