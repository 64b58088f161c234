"""Forks of a process that adopts: the child neither sends what is the parent's, nor keeps a lock.

Each test is a script in a process of its own: pytest is not forked.
"""

from __future__ import annotations

from pathlib import Path

from support.forks import needs_fork, run

pytestmark = needs_fork

BEGIN = """
import asyncio, logging, signal
from pathlib import Path
from support.dying import dying
from prefactor_core.journal.directory import JournalDirectory

folder = Path("journals").absolute()
config = make_config(journal=folder, drain_timeout=60.0, http={"request_timeout": 0.5})

# What is left in a journal is said there.
logging.getLogger("prefactor_core.client").setLevel(logging.ERROR)


async def leave_a_journal(api):
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        api.away = True
        record(instance)
    api.away = False


async def adopting(api):
    # Return when the adoption has sent something, and gets no answer.
    api.hanging = True
    requests = len(api.calls)
    with anyio.fail_after(60):
        while len(api.calls) == requests:
            await asyncio.sleep(0.01)
"""


def test_a_child_leaves_an_adoption_to_its_parent(tmp_path: Path) -> None:
    script = """
async def main():
    async with open_faulty_api() as api:
        await leave_a_journal(api)
        api.hanging = True
        async with open_prefactor(config, asgi_app=api) as client:
            await adopting(api)
            requests = len(api.calls)
            child = os.fork()
            if not child:
                abandoned = list(filter(None, JournalDirectory(folder).abandoned()))
                asyncio.run(record_run())
                os._exit(3 if not abandoned and len(api.calls) == requests else 4)
            assert wait_for(child) == 3
            api.hanging = False
        assert (await stored_run(api)).shape == ("failed", [TOOL])
        assert list(folder.iterdir()) == []

asyncio.run(main())
"""
    run(BEGIN + script, tmp_path)


def test_a_child_that_lives_longer_than_its_parent_keeps_no_journal_locked(tmp_path: Path) -> None:
    script = """
async def parent(write):
    async with open_faulty_api() as api:
        await leave_a_journal(api)
        api.hanging = True
        async with open_prefactor(config, asgi_app=api):
            await adopting(api)
            if not os.fork():
                # The child says so itself: before, it may not have left the locks yet.
                os.write(write, b"%d" % os.getpid())
                time.sleep(600)
                os._exit(1)
            os.kill(os.getpid(), signal.SIGKILL)

read, write = os.pipe()
dies = os.fork()
if not dies:
    asyncio.run(parent(write))
assert wait_for(dies) == -signal.SIGKILL
child = int(os.read(read, 100))
abandoned = list(filter(None, JournalDirectory(folder).abandoned()))
os.kill(child, signal.SIGKILL)
# That of the parent, and the one that it adopted.
assert len(abandoned) == 2, abandoned
"""
    run(BEGIN + script, tmp_path)
