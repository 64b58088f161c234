"""Notebooks, in a kernel of Jupyter and in the shell of IPython: ``just test-notebook``."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

import pytest
from notebooks.cells import OPEN, RUN_CELLS, WAYS, Kernel, runs_in

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.py"

for_each_host = pytest.mark.parametrize("host", RUN_CELLS)
for_each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def kernel(tmp_path: Path) -> Generator[Kernel]:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


def tool(status: str = "complete") -> tuple[str, str, list[object]]:
    return "agent:tool", status, []


@for_each_way
@for_each_host
def test_a_run_of_one_cell_is_current_in_the_next_ones_and_spans_nest(
    host: str, way: str, tmp_path: Path
) -> None:
    cells = WAYS[way]
    check = "assert current_instance() is instance and current_span() is None"
    RUN_CELLS[host](
        [
            OPEN,
            cells["open"],
            cells["start"],
            check,
            "search('below the run')",
            cells["begin"],
            "assert current_span() is not None",
            "search('below the session')",
            cells["nest"],
            cells["end"],
            check,
            "search('below the run again')",
            cells["finish"],
            "assert current_instance() is None",
            "search('unrecorded')",
            cells["close"],
            "assert client.statistics().lost == 0, client.statistics()",
        ],
        tmp_path,
    )
    (run,) = runs_in(tmp_path)
    session = ("agent:run", "complete", [tool(), ("agent:step", "complete", [tool()])])
    assert run.shape == ("complete", [tool(), session, tool()])


@for_each_way
@for_each_host
def test_all_in_one_cell_is_current_in_the_next(host: str, way: str, tmp_path: Path) -> None:
    cells = WAYS[way]
    first = "\n".join([OPEN, cells["open"], cells["start"], cells["begin"]])
    RUN_CELLS[host]([first, "search('x')", cells["end"] + "\n" + cells["close"]], tmp_path)
    (run,) = runs_in(tmp_path)
    assert run.shape == ("complete", [("agent:run", "complete", [tool()])])


@for_each_way
@for_each_host
def test_a_shell_that_ends_without_a_close_ends_its_run_as_cancelled(
    host: str, way: str, tmp_path: Path
) -> None:
    """A kernel that is restarted ends like one that is shut down."""
    cells = WAYS[way]
    RUN_CELLS[host]([OPEN, cells["open"], cells["start"], cells["begin"], "search('x')"], tmp_path)
    (run,) = runs_in(tmp_path)
    assert run.shape == ("cancelled", [("agent:run", "cancelled", [tool()])])


@for_each_way
def test_the_next_client_ends_the_run_of_a_kernel_that_was_killed(
    way: str, kernel: Kernel, tmp_path: Path
) -> None:
    cells = WAYS[way]
    with_journal = OPEN + "\noptions['journal'] = 'journal'"
    for cell in (with_journal, cells["open"], cells["start"], cells["begin"], "search('x')"):
        kernel.run(cell)
    kernel.kill_and_restart()
    for cell in (with_journal, cells["open"], cells["start"], cells["finish"], cells["close"]):
        kernel.run(cell)
    killed, next_one = runs_in(tmp_path)
    assert killed.shape == ("failed", [("agent:run", "failed", [tool()])])
    assert next_one.shape == ("complete", [])


def test_a_task_that_goes_on_keeps_its_spans_to_itself(kernel: Kernel, tmp_path: Path) -> None:
    cells = WAYS["with await"]
    for cell in (
        OPEN,
        cells["open"],
        cells["start"],
        """
import asyncio
go_on = asyncio.Event()

async def work():
    async with instance.span("agent:background"):
        await go_on.wait()
        search("in the background")

task = asyncio.create_task(work())
await asyncio.sleep(0)
""",
        "assert current_span() is None\nsearch('in a cell')",
        "go_on.set(); await task",
        cells["finish"],
        cells["close"],
    ):
        kernel.run(cell)
    (run,) = runs_in(tmp_path)
    assert run.shape == ("complete", [("agent:background", "complete", [tool()]), tool()])


def test_a_cell_that_ends_with_a_run_shows_it(kernel: Kernel) -> None:
    cells = WAYS["without await"]
    for cell in (OPEN, cells["open"], cells["start"], cells["begin"]):
        kernel.run(cell)
    html = kernel.run("instance")["text/html"]
    assert "<b>agent:run</b>" in html
    assert ">active</span>" in html


@for_each_host
def test_the_chapter_records_the_same_as_in_a_program(host: str, tmp_path: Path) -> None:
    docstring, *cells = re.split(r"^# %%\n", NOTEBOOK.read_text("utf-8"), flags=re.MULTILINE)
    address = "import os\nos.environ['PREFACTOR_API_URL'] = 'local:runs.db'"
    said = RUN_CELLS[host]([address, docstring, *cells], tmp_path)
    assert re.search(r"LookupError: nothing there\n\d+ operations delivered\n", said)
    (run,) = runs_in(tmp_path, "notebook")
    assert run.shape == ("complete", [("agent:run", "complete", [tool(), tool("failed")])])
