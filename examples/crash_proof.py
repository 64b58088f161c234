"""Journal: an agent that is killed, and whose run is complete after the next start.

    python examples/crash_proof.py            # or with: trio

With ``journal=DIR`` (or ``PREFACTOR_JOURNAL``) everything that is recorded is in a file of that
folder before the recording call returns. When the process is killed, or the API is away for longer
than the process lives, nothing is lost: the next client with the same folder and the same API finds
the journal of the dead process, in the background. It delivers what is left, in order and each
operation once, under the same keys, and ends what was open, children first: spans as ``failed``,
with ``error.type`` ``process_died`` and the time of the last entry, then the run.

=============================  =========================  =================  =======================
what happens                   no journal                 ``"process"``      ``"disk"``
=============================  =========================  =================  =======================
the block ends, by return,     delivered within           the same           the same
exception or cancellation      ``drain_timeout``
the API is away until after    lost, and counted          kept, and counted  kept, and counted
that                                                      as pending         as pending
SIGKILL, the out-of-memory     lost                       kept               kept
killer, a crash, os._exit()
the machine stops: power,      lost                       about the last     all but about the last
kernel                                                    30 s may be lost   20 ms is kept
the disk is full, read-only    no disk is needed          in memory, with    in memory, with one
or gone                                                   one warning        warning
the folder is deleted, or its  lost                       lost               lost
container with it
=============================  =========================  =================  =======================

* The last two columns are ``journal_sync="process"``, the default, which survives the death of the
  process, and ``"disk"``, which also survives that of the machine.
* Files that cannot be written are tried again each 5 seconds. If they cannot be from the start, the
  client has no journal.
* Any number of processes may share the folder, on a local disk of Linux or macOS: each has a
  journal of its own there, and leaves those of living ones alone. The files are for their owner
  alone, and hold payloads as they are sent, and no token.
* Where a machine never starts the agent again, ``python -m prefactor_core journal replay DIR
  --api-url URL``, with PREFACTOR_API_TOKEN, does the same, also on another machine to which the
  folder was copied (``cp -a``). ``journal ls`` lists journals, and ``journal discard`` deletes
  them.
* One effect of each operation is a matter of its idempotency key, and holds as long as the API
  remembers the key. Replay one copy of a journal, not two.
* One ``INFO`` line says what was delivered for a dead process, and ``statistics().adopted`` counts
  it. What the API refuses, a run with a wrong token for instance, counts as dropped, and is kept in
  the journal with the reason, until you remove it: ``python -m prefactor_core journal show DIR``
  shows it, and ``journal replay --refused`` sends it once more. A record that is damaged is left
  out, and its file is kept.
* On a network file system the journal is written, and nothing is adopted, because a lock there may
  not tell who lives: use ``journal replay``.

It leaves this tree::

    failed
    agent:tool_call complete
    agent:run failed
      agent:llm_call failed
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio

from prefactor_core import open_prefactor
from prefactor_core.span_types import AgentRun, LLMCall, ToolCall, ToolResult


async def run_agent(api_url: str, journal: str) -> None:
    """The first process: it dies while it waits for its model."""
    async with open_prefactor(api_url=api_url, journal=journal) as client:
        async with client.agent_instance("crash-proof", {"name": "Unlucky agent"}) as instance:
            with instance.span(ToolCall(tool="search", arguments={"query": "Olympus"})) as span:
                span.set_result(ToolResult(output="a mountain"))
            with instance.span(AgentRun(input="How high is it?")):
                with instance.span(LLMCall(model="small-1", prompt="How high is Olympus Mons?")):
                    os.kill(os.getpid(), signal.SIGKILL)  # stands for the out-of-memory killer


async def start_again(api_url: str, journal: str) -> None:
    """The second process: to open a client with the same folder is all that it does."""
    async with open_prefactor(api_url=api_url, journal=journal):
        pass


def main(backend: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        api_url = os.environ.get("PREFACTOR_API_URL") or f"local:{folder}/runs.db"
        journal = os.environ.get("PREFACTOR_JOURNAL") or f"{folder}/journal"
        first = subprocess.run([sys.executable, __file__, backend, api_url, journal], check=False)
        left = len(list(Path(journal).iterdir()))
        print(f"the agent was ended by signal {-first.returncode}, and left {left} journal")
        anyio.run(start_again, api_url, journal, backend=backend)
        print(f"after the next start {len(list(Path(journal).iterdir()))} are left")


if __name__ == "__main__":
    loop = sys.argv[1] if len(sys.argv) > 1 else "asyncio"
    if len(sys.argv) == 4:
        anyio.run(run_agent, sys.argv[2], sys.argv[3], backend=loop)
    else:
        main(loop)
