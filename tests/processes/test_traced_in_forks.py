"""Traced functions in a process that was forked from their client's: they run, unrecorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.forks import needs_fork, run

pytestmark = needs_fork

SCRIPT = """
import asyncio, logging, multiprocessing
from concurrent.futures import ProcessPoolExecutor
from prefactor_core import span, traced

@traced("agent:tool")
def plain(n):
    return n

@traced("agent:tool")
async def coroutine(n):
    return n

@traced("agent:tool")
def generator(n):
    yield from range(n)

@traced("agent:tool")
async def async_generator(n):
    for i in range(n):
        yield i

async def collected():
    return [i async for i in async_generator(3)]

def use_all():
    return plain(3), asyncio.run(coroutine(3)), list(generator(3)), asyncio.run(collected())

def work(number):
    lines = []
    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
    logger = logging.getLogger("prefactor_core")
    logger.propagate = False
    logger.addHandler(Lines())
    assert use_all() == use_all() == (3, 3, [0, 1, 2], [0, 1, 2])
    own = instance.traced("agent:tool")(lambda: 4)
    assert own() == 4
    with span("agent:tool") as step:
        step.set_result({"n": 1})
    return os.getpid(), lines

async def main():
    global instance
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                started = generator(2)
                assert next(started) == 0
                IN_FORKS
                assert list(started) == [1]
        assert (await stored_run(api)).shape == ("complete", [TOOL])
        assert not api.app.refusals

asyncio.run(main())
"""

IN_POOL = """
                with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
                    said = dict(pool.map(work, range(2)))
                for lines in said.values():
                    (line,) = lines
                    assert line.startswith("plain is called in a fork"), line
"""

IN_CHILD = """
                child = os.fork()
                if child == 0:
                    try:
                        logging.disable(logging.CRITICAL)
                        # What was begun before goes on.
                        assert list(started) == [1]
                        assert plain(3) == 3
                        os._exit(3)
                    finally:
                        os._exit(4)
                assert wait_for(child) == 3
"""


@pytest.mark.parametrize("forks", [IN_POOL, IN_CHILD], ids=["pool", "child"])
def test_a_traced_function_of_any_kind_runs_unrecorded_in_a_fork_and_logs_it_once(
    forks: str, tmp_path: Path
) -> None:
    run(SCRIPT.replace("IN_FORKS", forks.strip()), tmp_path)
