"""A process that is killed while it writes to a file."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from prefactor_core.local.store import Store

WRITES = """
import sys
import msgspec
from prefactor_core.local.agents import Agents
from prefactor_core.local.bulk import Bulk
from prefactor_core.local.faults import Faults
from prefactor_core.local.requests import BulkBody, CreateSpanBody, RegisterBody, SpanDetails
from prefactor_core.local.resources.environments import Environments
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store

store = Store(sys.argv[1])
service = Service(store)
registration = RegisterBody(agent_id="a1", agent_version={"name": "An agent"})
run = msgspec.json.decode(service.register(registration))["details"]["id"]
bulk = Bulk(service, Agents(store), Environments(store), Faults(), None)
details = {
    "agent_instance_id": run, "schema_name": "agent:llm_call", "status": "active",
    "payload": {"token_usage": {"total_tokens": 1}},
}
TYPE = "agent_spans/create"
number = 0
while True:
    answer = service.create_span(CreateSpanBody(details=SpanDetails(**details)))
    print(msgspec.json.decode(answer)["details"]["id"], flush=True)
    items = [
        {"_type": TYPE, "idempotency_key": f"{run}-{number}-{n}", "details": details}
        for n in range(20)
    ]
    outputs = msgspec.json.decode(bulk.run(BulkBody(items=items), print))["outputs"]
    for output in outputs.values():
        print(output["details"]["id"], flush=True)
    number += 1
"""


def test_a_file_whose_writers_were_killed_opens_and_has_all_they_were_answered(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "prefactor.db")
    answered: set[str] = set()
    for killed_after in (1, 21, 80):
        with subprocess.Popen(
            [sys.executable, "-c", WRITES, path], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(killed_after):
                answered.add(process.stdout.readline().strip())
            process.kill()  # somewhere in the next writes
            answered.update(process.stdout.read().split())
        with closing(Store(path)) as store:
            assert [row[0] for row in store.all("PRAGMA integrity_check")] == ["ok"]
            assert answered <= {row["id"] for row in store.all("SELECT id FROM agent_spans")}
            for run in store.all("SELECT * FROM agent_instances"):
                (counted,) = store.all(
                    "SELECT count(*) AS spans, total(tokens) AS tokens FROM agent_spans "
                    "WHERE agent_instance_id = ?",
                    run["id"],
                )
                assert (run["active_spans"], run["tokens"]) == tuple(counted)
