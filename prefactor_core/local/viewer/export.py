"""Export: the files of a run, made from the rows of the database. Synchronous."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from sqlite3 import Connection
from typing import NamedTuple

import msgspec
from msgspec import Raw

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.local.errors import invalid, not_found
from prefactor_core.local.store import Store
from prefactor_core.local.versions import Versions
from prefactor_core.local.viewer.documents import documents
from prefactor_core.local.viewer.exports.html import html
from prefactor_core.local.viewer.exports.otlp import otlp
from prefactor_core.local.viewer.exports.run_json import run_json
from prefactor_core.local.views import Views


class ExportedRun(NamedTuple):
    """A file for a reader elsewhere."""

    name: str
    media_type: str
    content: bytes


def export(db: Connection, database: str, run_id: str, query: Mapping[str, str]) -> ExportedRun:
    """The run in the ``format`` that ``query`` names: ``json``, ``otlp`` or ``html``.

    ``database``: the name of the database, which the page shows.
    """
    match query.get("format"):
        case "json":
            content = run_json(*_answers(db, run_id))
            return ExportedRun(f"{run_id}.json", "application/json", content)
        case "otlp":
            instance, spans = _answers(db, run_id)
            content = otlp(
                msgspec.json.decode(instance, type=AgentInstanceAnswer),
                [msgspec.json.decode(span, type=AgentSpanAnswer) for span in spans],
            )
            return ExportedRun(f"{run_id}.otlp.json", "application/json", content)
        case "html":
            content = html(documents(db, database, run_id))
            return ExportedRun(f"{run_id}.html", "text/html", content)
        case _:
            raise invalid("format", "must be json, otlp or html")


class _StoredRows(Store):
    """The reading part of a store, over a connection that only reads."""

    def __init__(self, db: Connection) -> None:
        self._opened, self._turn, self._is_closed = db, threading.RLock(), False
        (self.account_id,) = db.execute("SELECT id FROM account").fetchone()


def _answers(db: Connection, run_id: str) -> tuple[Raw, list[Raw]]:
    """The answers of the API about a run and its spans."""
    store = _StoredRows(db)
    views = Views(store, Versions(store))
    instance = store.one("SELECT * FROM agent_instances WHERE id = ?", run_id)
    if instance is None:
        raise not_found("agent instance", run_id)
    query = "SELECT * FROM agent_spans WHERE agent_instance_id = ? ORDER BY id"
    spans = [_raw(views.span(span, instance)) for span in db.execute(query, (run_id,))]
    return _raw(views.instance(instance)), spans


def _raw(answer: Mapping[str, object]) -> Raw:
    return Raw(msgspec.json.encode(answer))
