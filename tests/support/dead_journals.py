"""Journals as processes leave them: of an agent that is killed, and step by step."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

from support.commands import REPOSITORY
from support.journal_files import PAYLOAD

from prefactor_core.export.batch_item import BatchItem
from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.format import VERSION, Header
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.operations import Operation

AGENT = """
import os, signal, sys
import anyio
from prefactor_core import SchemaRegistry, open_prefactor, sensitive

registry = SchemaRegistry()
for name in ("agent:llm", "agent:tool"):
    registry.register_type(name, {"type": "object"})
address = sensitive("me@example.org", "contact_information")
agent = "research", {"name": "An agent", "external_identifier": "v1"}


async def main():
    async with (
        open_prefactor(
            api_url=sys.argv[1],
            api_token="token-of-the-agent",
            journal=sys.argv[2],
            schema_registry=registry,
            registration_timeout=0.1,
        ) as client,
        client.agent_instance(*agent) as instance,
    ):
        for number in range(3):
            with instance.span("agent:tool", payload={"number": number, "to": address}) as span:
                span.set_result({"found": number})
        last = {"left": "open", "to": address}
        with instance.span("agent:llm"), instance.span("agent:tool", payload=last):
            os.kill(os.getpid(), signal.SIGKILL)


anyio.run(main)
"""


def run_agent_until_killed(directory: Path, api_url: str) -> None:
    """Leave the journal of an agent that was killed: its run is open, and so are two spans."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AGENT, api_url, str(directory)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-9, b"")


@dataclass
class Journal:
    """A journal in ``directory``, of a process that lives until :meth:`die`."""

    directory: Path
    api_url: str = "https://api.example"
    version: int = VERSION
    writer: JournalWriter = field(init=False)

    def __post_init__(self) -> None:
        directory = JournalDirectory(self.directory)
        directory.open()
        hold = directory.create()
        self.path = hold.path
        header = Header(
            version=self.version, api_url=self.api_url, host="build-7", process=42, sdk="an-sdk"
        )
        self.writer = JournalWriter(hold, header, RLock(), lambda step: step(), max_bytes=1_000_000)

    @property
    def name(self) -> str:
        return self.path.stem

    def append(self, *operations: Operation) -> None:
        for operation in operations:
            self.writer.append(operation)

    def open_span(self, span_id: str, instance_id: str, at: int) -> None:
        self.writer.opened(span_id, instance_id, "agent:llm", None, at, PAYLOAD)

    def send(self, operation: Operation) -> None:
        """Note that an operation goes into a request, merged with nothing."""
        self.writer.sending([_item(operation)])

    def settle(self, operation: Operation) -> None:
        self.writer.settled([_item(operation)])

    def refuse(self, operation: Operation, error: str) -> None:
        self.writer.set_aside(_item(operation), "refused", error)

    def die(self) -> None:
        self.writer.abandon()


def _item(operation: Operation) -> BatchItem:
    return BatchItem(operation, 0, operation.size, (operation.idempotency_key,))
