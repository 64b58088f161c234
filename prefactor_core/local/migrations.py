"""Migrations: the tables of a local Prefactor, and how older files come to have them."""

from __future__ import annotations

import sqlite3
import time
from functools import cache
from typing import Final

from prefactor_core.local.usage import is_llm_call, usage_of


def tokens_of(payload: str, result: str | None) -> int | None:
    """The tokens of a span of an LLM call."""
    return usage_of(payload, result).tokens


def cost_of(payload: str, result: str | None) -> float | None:
    """The cost of a span of an LLM call."""
    return usage_of(payload, result).cost


_FUNCTIONS: Final = (is_llm_call, tokens_of, cost_of)
"""The functions that the migrations call, by their names."""

ADD_DEFAULT_ENVIRONMENT: Final = """
INSERT OR IGNORE INTO environments
    SELECT id, 'default', strftime('%Y-%m-%dT%H:%M:%f000Z'), strftime('%Y-%m-%dT%H:%M:%f000Z')
    FROM account
"""

# Migrations of the tables, in order. The user_version of a file is the number of those it has had;
# files of the first versions have 0 and the tables of the first migration.
MIGRATIONS: Final = (
    """
CREATE TABLE IF NOT EXISTS account (
    id TEXT PRIMARY KEY
);
CREATE TABLE IF NOT EXISTS agent_versions (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    external_identifier TEXT,
    content TEXT NOT NULL,
    inserted_at TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS agent_versions_by_name
    ON agent_versions (agent_id, kind, external_identifier);
CREATE TABLE IF NOT EXISTS agent_instances (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    agent_version_id TEXT NOT NULL,
    agent_schema_version_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    external_identifier TEXT,
    purpose TEXT NOT NULL,
    status TEXT NOT NULL,
    termination_reason TEXT,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT
);
CREATE INDEX IF NOT EXISTS agent_instances_by_agent ON agent_instances (agent_id, id);
CREATE UNIQUE INDEX IF NOT EXISTS agent_instances_by_name
    ON agent_instances (agent_id, external_identifier);
CREATE TABLE IF NOT EXISTS agent_spans (
    id TEXT PRIMARY KEY,
    agent_instance_id TEXT NOT NULL REFERENCES agent_instances (id),
    parent_span_id TEXT REFERENCES agent_spans (id),
    schema_name TEXT NOT NULL,
    status TEXT NOT NULL,
    payload TEXT NOT NULL,
    result_payload TEXT,
    sensitive_encoding INTEGER,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT
);
CREATE INDEX IF NOT EXISTS agent_spans_by_instance ON agent_spans (agent_instance_id, id);
CREATE TABLE IF NOT EXISTS idempotency_keys (
    key TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    answer TEXT NOT NULL
);
""",
    """
CREATE TABLE agents (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT,
    external_identifier TEXT UNIQUE,
    owner_person_id TEXT,
    risk_profile_id TEXT,
    team_id TEXT,
    retired INTEGER NOT NULL DEFAULT 0,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
INSERT INTO agents (id, name, inserted_at, updated_at)
    SELECT agent_id, agent_id, min(inserted_at), min(inserted_at)
    FROM agent_instances GROUP BY agent_id;
ALTER TABLE agent_instances ADD COLUMN quality TEXT NOT NULL DEFAULT '{}';
ALTER TABLE agent_spans ADD COLUMN flags TEXT NOT NULL DEFAULT '[]';
""",
    # The age of answers that are already stored counts from now.
    """
ALTER TABLE idempotency_keys ADD COLUMN used_at INTEGER NOT NULL DEFAULT :now;
""",
    # start_given, whether the client gave the start time, was used by earlier versions.
    """
ALTER TABLE agent_instances ADD COLUMN start_given INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN flags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE agent_spans ADD COLUMN start_given INTEGER NOT NULL DEFAULT 0;
""",
    # What the viewer lists. A revision is the number of the transaction that last changed a row.
    # Rows that are there already have the first one. The time ``at`` of a span is when it started,
    # or else when it was stored; lists of spans are read from the indexes that have it.
    """
CREATE TABLE revision (value INTEGER NOT NULL);
INSERT INTO revision VALUES (1);
ALTER TABLE agent_spans ADD COLUMN agent_id TEXT NOT NULL DEFAULT '';
ALTER TABLE agent_spans ADD COLUMN at TEXT NOT NULL DEFAULT '';
ALTER TABLE agent_spans ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
ALTER TABLE agent_spans ADD COLUMN tokens INTEGER;
ALTER TABLE agent_spans ADD COLUMN cost REAL;
ALTER TABLE agent_spans ADD COLUMN has_llm_child INTEGER NOT NULL DEFAULT 0;
UPDATE agent_spans SET at = coalesce(started_at, inserted_at), agent_id = (
    SELECT agent_id FROM agent_instances WHERE id = agent_instance_id);
UPDATE agent_spans SET has_llm_child = 1 WHERE id IN (
    SELECT parent_span_id FROM agent_spans WHERE is_llm_call(schema_name));
UPDATE agent_spans
    SET tokens = tokens_of(payload, result_payload), cost = cost_of(payload, result_payload)
    WHERE is_llm_call(schema_name) AND NOT has_llm_child;
DROP INDEX agent_spans_by_instance;
CREATE INDEX agent_spans_by_instance ON agent_spans (agent_instance_id, id, at);
CREATE INDEX agent_spans_by_agent ON agent_spans (agent_id, id, at);
CREATE INDEX agent_spans_by_time ON agent_spans (agent_id, at, id);
CREATE INDEX agent_spans_by_revision ON agent_spans (agent_instance_id, revision);
ALTER TABLE agent_instances ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
ALTER TABLE agent_instances ADD COLUMN heard_at TEXT;
ALTER TABLE agent_instances ADD COLUMN last_activity_at TEXT;
ALTER TABLE agent_instances ADD COLUMN pending_spans INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN active_spans INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN complete_spans INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN failed_spans INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN cancelled_spans INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN flagged_spans INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN llm_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN cost REAL NOT NULL DEFAULT 0;
UPDATE agent_instances SET (
    pending_spans, active_spans, complete_spans, failed_spans, cancelled_spans, flagged_spans,
    llm_calls, tokens, cost, last_activity_at
) = (
    SELECT
        coalesce(sum(status = 'pending'), 0),
        coalesce(sum(status = 'active'), 0),
        coalesce(sum(status = 'complete'), 0),
        coalesce(sum(status = 'failed'), 0),
        coalesce(sum(status = 'cancelled'), 0),
        coalesce(sum(flags != '[]'), 0),
        coalesce(sum(is_llm_call(schema_name) AND NOT has_llm_child), 0),
        coalesce(sum(tokens), 0),
        total(cost),
        max(agent_instances.updated_at, coalesce(max(agent_spans.updated_at), ''))
    FROM agent_spans WHERE agent_instance_id = agent_instances.id);
CREATE INDEX agent_instances_by_version ON agent_instances (agent_id, agent_version_id, id);
CREATE INDEX agent_instances_by_schema ON agent_instances (agent_schema_version_id);
CREATE INDEX agent_instances_by_update ON agent_instances (updated_at);
CREATE INDEX agent_instances_by_revision ON agent_instances (revision);
CREATE INDEX agent_instances_by_status ON agent_instances (status, id);
CREATE INDEX agent_instances_by_purpose ON agent_instances (purpose, id);
CREATE INDEX agent_instances_by_agent_status ON agent_instances (agent_id, status, id);
""",
    # Environments, deployments, and tokens. Runs that are there already get their environments and
    # deployments. An id takes its time and partition from a run; hexadecimal digits are characters
    # of an id, too.
    f"""
ALTER TABLE account ADD COLUMN name TEXT NOT NULL DEFAULT 'Local';
ALTER TABLE account ADD COLUMN updated_at TEXT;
CREATE TABLE environments (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
{ADD_DEFAULT_ENVIRONMENT};
INSERT OR IGNORE INTO environments
    SELECT environment_id, environment_id, min(inserted_at), min(inserted_at)
    FROM agent_instances GROUP BY environment_id;
CREATE TABLE agent_deployments (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    current_version_id TEXT,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (agent_id, environment_id)
);
INSERT INTO agent_deployments
    SELECT substr(max(id), 1, 16) || lower(hex(randomblob(8))), agent_id, environment_id,
        agent_version_id, inserted_at, inserted_at
    FROM agent_instances GROUP BY agent_id, environment_id;
ALTER TABLE agent_instances ADD COLUMN agent_deployment_id TEXT NOT NULL DEFAULT '';
UPDATE agent_instances SET agent_deployment_id = (
    SELECT id FROM agent_deployments AS deployment
    WHERE deployment.agent_id = agent_instances.agent_id
        AND deployment.environment_id = agent_instances.environment_id);
ALTER TABLE agent_instances ADD COLUMN quality_payload TEXT;
CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY,
    token_hash TEXT NOT NULL UNIQUE,
    token_scope TEXT NOT NULL,
    agent_id TEXT,
    environment_id TEXT,
    agent_deployment_id TEXT,
    status TEXT NOT NULL,
    expires_at TEXT,
    last_used_at TEXT,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
""",
)


def migrate(connection: sqlite3.Connection) -> None:
    """Run the migrations that the file of ``connection`` has not had; in a transaction."""
    for function in _FUNCTIONS:
        connection.create_function(function.__name__, -1, function, deterministic=True)
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    for migration in MIGRATIONS[done:]:
        for statement in migration.replace(":now", str(int(time.time()))).split(";"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@cache
def empty_database() -> sqlite3.Connection:
    """A database in memory that has had all migrations. It is copied in a fiftieth of the time that
    they take, which tests of agents save each time."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate(connection)
    return connection
