"""Documents: the answers of the viewer that the page of one run needs. Synchronous."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from prefactor_core.config._version import __version__
from prefactor_core.local.read_only import connect
from prefactor_core.local.requests import stored_now
from prefactor_core.local.spans import Spans
from prefactor_core.local.store import Store
from prefactor_core.local.viewer.runs import run_details
from prefactor_core.local.viewer.spans import skeleton, span_details
from prefactor_core.local.viewer.usage import usage

_NULL = Raw(b"null")


def documents(db: Connection, database: str, run_id: str) -> dict[str, bytes]:
    """The documents by their paths, of a run in the database ``db``.

    ``database``: the name that the page shows. Raises :class:`ApiError` (404) for an unknown run.
    """
    about = {
        "database": database,
        # Of no use where the file is read, and nobody's business there.
        "path": database,
        "url": None,
        "version": __version__,
        "read_only": True,
        "needs_token": False,
        "time": stored_now(),
        "account_id": None,
    }
    run = f"/-/runs/{run_id}"
    paths = {
        "/-/about": msgspec.json.encode(about),
        run: run_details(db, run_id),
        f"{run}/skeleton": skeleton(db, run_id),
        f"{run}/usage": usage(db, run_id),
    }
    query = "SELECT id FROM agent_spans WHERE agent_instance_id = ? ORDER BY id"
    for (span_id,) in db.execute(query, (run_id,)).fetchall():
        paths[f"/-/spans/{span_id}"] = span_details(db, span_id)
    return paths


class _Instance(Struct):
    id: str
    status: str
    agent_id: str | None = None
    agent_version_id: str | None = None
    environment_id: str | None = None
    external_identifier: str | None = None
    purpose: str | None = None
    termination_reason: str | None = None
    inserted_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    flags: list[str] = field(default_factory=list[str])
    quality_payloads: dict[str, Raw] = field(default_factory=dict[str, Raw])
    quality_flags: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    quality_summaries: dict[str, str | None] = field(default_factory=dict[str, str | None])


class _Span(Struct):
    id: str
    status: str
    schema_name: str
    schema_title: str | None = None
    parent_span_id: str | None = None
    payload: Raw = _NULL
    result_payload: Raw = _NULL
    sensitive_encoding: bool | None = None
    inserted_at: str | None = None
    updated_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    flags: list[str] = field(default_factory=list[str])
    summary: str | None = None
    data_risk: Raw = _NULL


def documents_of(instance: Raw, spans: Iterable[Raw], database: str) -> dict[str, bytes]:
    """The documents of a run that is stored elsewhere, from what the API there answers: the
    instance, and its spans with their summaries.

    Raises :class:`msgspec.ValidationError` for other JSON.
    """
    run = msgspec.json.decode(instance, type=_Instance)
    known = [msgspec.json.decode(span, type=_Span) for span in spans]
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "run.db"))
        with closing(Store(path)) as store, store.transaction():
            _store(store, run, known)
        with closing(connect(path)) as db:
            paths = documents(db, database, run.id)
    # The templates stay with the API: it sends what they make of a payload.
    shown: dict[str, Any] = msgspec.json.decode(paths[f"/-/runs/{run.id}"])
    for quality in shown["run"]["quality"]:
        quality["summary"] = run.quality_summaries.get(quality["name"])
    paths[f"/-/runs/{run.id}"] = msgspec.json.encode(shown)
    for span in known:
        details: dict[str, Any] = msgspec.json.decode(paths[f"/-/spans/{span.id}"])
        details["span"]["summary"] = span.summary
        paths[f"/-/spans/{span.id}"] = msgspec.json.encode(details)
    return paths


def _store(store: Store, run: _Instance, spans: list[_Span]) -> None:
    began = run.inserted_at or run.started_at or stored_now()
    agent_id, version_id = run.agent_id or "", run.agent_version_id or ""
    times = {"inserted_at": began, "updated_at": began}
    store.insert("agents", {"id": agent_id, "name": agent_id, **times})
    types = {
        span.schema_name: {
            "name": span.schema_name,
            "title": span.schema_title,
            "data_risk": span.data_risk,
        }
        for span in spans
    }
    qualities = [{"name": name} for name in run.quality_payloads]
    schema = {"span_type_schemas": [*types.values()], "quality_schemas": qualities}
    version = {
        "id": "schema",
        "agent_id": agent_id,
        "kind": "agent_schema_version",
        "content": _text(schema),
        "inserted_at": began,
    }
    store.insert("agent_versions", version)
    same = ("id", "status", "external_identifier", "termination_reason", "started_at")
    row = {
        **{name: getattr(run, name) for name in (*same, "finished_at")},
        **times,
        "agent_id": agent_id,
        "agent_version_id": version_id,
        "agent_schema_version_id": version["id"],
        "environment_id": run.environment_id or "",
        "purpose": run.purpose or "live",
        "flags": _text(run.flags),
        "quality": _text(
            {
                name: {"payload": payload, "flags": run.quality_flags.get(name, [])}
                for name, payload in run.quality_payloads.items()
            }
        ),
    }
    store.insert("agent_instances", row)
    rows = Spans(store)
    for span in _parents_first(spans):
        inserted = span.inserted_at or began
        result = bytes(span.result_payload).decode()
        same = ("id", "parent_span_id", "schema_name", "status", "sensitive_encoding")
        rows.add(
            {
                **{name: getattr(span, name) for name in (*same, "started_at", "finished_at")},
                "agent_instance_id": run.id,
                "agent_id": agent_id,
                "payload": bytes(span.payload).decode(),
                "result_payload": None if result == "null" else result,
                "flags": _text(span.flags),
                "inserted_at": inserted,
                "updated_at": span.updated_at or inserted,
            }
        )


def _parents_first(spans: list[_Span]) -> Iterator[_Span]:
    """All spans, each after its parent; a parent that is not there is none."""
    waiting = {span.id: span for span in spans}
    for span in spans:
        if span.parent_span_id not in waiting:
            span.parent_span_id = None
    # A stack, not recursion: a run may be nested deeper than Python's recursion limit.
    for span in spans:
        path: list[_Span] = []
        above: _Span | None = span
        while above is not None and waiting.pop(above.id, None) is not None:
            path.append(above)
            above = None if above.parent_span_id is None else waiting.get(above.parent_span_id)
        yield from reversed(path)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
