"""Every Python block of the README runs as it stands, in an empty folder: scripts and tests.

A block that only decorates functions is followed by a call of one; a test finds an agent to import.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import anyio
import click
import pytest
from msgspec import Struct
from msgspec.structs import fields
from support.harness import StoredRun, stored_runs

from prefactor_core import HttpClientConfig, PrefactorCoreConfig, QueueConfig, span_types
from prefactor_core.cli.main import main
from prefactor_core.local import open_local_prefactor
from prefactor_core.schema_registry.type_schema import result_type_of

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
TEXT = README.read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
TESTS = [block for block in BLOCKS if "def test_" in block]
SCRIPTS = [block for block in BLOCKS if block not in TESTS]
A_CALL = """

import anyio
from prefactor_core import open_prefactor


async def main() -> None:
    async with open_prefactor(api_url="local:runs.db") as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}):
            assert await ask("Olympus", temperature=0.5) == "Olympus at 0.5"


anyio.run(main)
"""
AN_AGENT = """
from prefactor_core import PrefactorCoreClient
from prefactor_core.span_types import LLMCall, LLMResult


async def answer(client: PrefactorCoreClient, question: str) -> None:
    async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
        async with instance.span(LLMCall(model="small-1", prompt=question)) as span:
            span.set_result(LLMResult(response="Hi there"))
"""


@pytest.mark.parametrize("block", SCRIPTS, ids=range(len(SCRIPTS)))
def test_a_block_of_the_readme_runs_and_records_without_a_word(block: str, tmp_path: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    if "async def main(" not in block:
        block += A_CALL
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    run = anyio.run(stored_run, tmp_path / "runs.db")
    assert run.shape == ("complete", [("agent:llm_call", "complete", [])])
    if "@traced" in block:
        call = run.named("agent:llm_call")
        assert {**call.payload, "inputs": None} == {
            "model": "small-1",
            "prompt": "Olympus",
            "temperature": 0.5,
            "inputs": None,
        }
        assert call.result == {"response": "Olympus at 0.5"}


async def stored_run(path: Path) -> StoredRun:
    async with open_local_prefactor(str(path)) as app:
        (run,) = await stored_runs(app, "my-agent")
    return run


@pytest.mark.parametrize("block", TESTS, ids=range(len(TESTS)))
def test_a_test_of_the_readme_passes_on_both_backends(
    block: str, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(my_agent=AN_AGENT, test_of_the_readme=block)
    result = pytester.runpytest_subprocess("-v", "-W", "error", timeout=60)
    assert result.ret == 0
    result.stdout.fnmatch_lines_random(["*[[]asyncio[]] PASSED*", "*[[]trio[]] PASSED*"])
    result.assert_outcomes(passed=2)


FUNCTION = r"(?m)^(async def (\w+)\(.*(?:\n .+)+)"
SLIPS = {
    "a_wrong_parameter": ("prompt=", "promt="),
    "a_wrong_kind_of_parameter": ('model="small-1"', "model=1"),
    "a_wrong_field_of_the_result": ("response=", "respons="),
    "another_class_for_the_result": ("(LLMResult(response", "(LLMCall(model"),
}


def test_type_checkers_see_what_is_wrong_in_the_first_example() -> None:
    """``just check`` runs them: a slip that one does not see is an error."""
    path = REPOSITORY / "tests" / "typing" / "first_example.py"
    checked, expected = re.subn(r"  # type: ignore\[.+?\]  # pyright: .+", "", path.read_text())
    assert BLOCKS[0] in checked
    functions = {name: text for text, name in re.findall(FUNCTION, checked)}
    (main,) = re.findall(FUNCTION, BLOCKS[0])
    assert functions.pop("main") == main[0]
    for name, (right, wrong) in SLIPS.items():
        assert right in main[0]
        assert functions.pop(name) == main[0].replace("main", name).replace(right, wrong)
    assert functions == {}
    assert expected == len(SLIPS)


def test_the_first_example_has_ten_lines_at_most() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 10


def test_the_commands_of_the_readme_are_those_that_continuous_integration_runs() -> None:
    commands = re.findall(r"```sh\n(.*?)\n```", TEXT, re.DOTALL)
    script = (REPOSITORY / ".ci" / "run").read_text("utf-8")
    assert len(commands) == 2
    assert commands[0] in script.replace("pip install -q", "pip install")
    assert f"\n{commands[1]}\n" in script


def cells_of(header: str) -> list[list[str]]:
    """The rows of the table whose header begins so, without header and rule."""
    rows = TEXT.split(f"\n| {header} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip()[1:-1].split("|")] for row in rows]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(.*?)`", cell)


CONFIGS = {
    config.__name__: config for config in (PrefactorCoreConfig, QueueConfig, HttpClientConfig)
}


def test_the_table_of_options_has_their_defaults() -> None:
    config = CONFIGS["PrefactorCoreConfig"]
    shown = 0
    for name, default, _ in cells_of("`PrefactorCoreConfig`"):
        if name.startswith("**"):
            config = CONFIGS[name.strip("*`")]
            continue
        defaults = {field.name: field.default for field in fields(config)}
        names, texts = quoted(name), quoted(default)
        assert set(names) <= defaults.keys()
        assert len(texts) in (0, len(names)), name
        for option, text in zip(names, texts, strict=bool(texts)):
            shown += 1
            value = defaults[option]
            assert repr(value) == text or ast.literal_eval(text) == value, option
    assert shown > 15


# Taken for compatibility, and without effect.
WITHOUT_EFFECT = {"initial_retry_delay", "default_idempotency_key"}


def test_the_docstring_of_a_configuration_has_all_its_options() -> None:
    for config in CONFIGS.values():
        options = {field.name for field in fields(config)} - WITHOUT_EFFECT
        assert options <= set(re.findall(r"``(\w+)``", config.__doc__ or "")), config


FILLED_IN = {"inputs", "ai"}


def test_the_docstring_of_the_standard_types_has_all_their_fields() -> None:
    document = span_types.__doc__ or ""
    rule = r"={10,}  ={50,}\n"
    table = re.search(rf"{rule}class +fields\n{rule}(.*?){rule}", document, re.DOTALL)
    assert table is not None
    documented: dict[str, set[str]] = {}
    for row in re.split(r"\n(?=`)", table[1]):
        name, *names = re.findall(r"``(\w+)``", row)
        documented[name] = set(names)
    assert documented == {
        cls.__name__: {field.name for field in fields(cls)} - FILLED_IN
        for cls in vars(span_types).values()
        if isinstance(cls, type)
        and issubclass(cls, Struct)
        and cls.__module__ == "prefactor_core.span_types"
    }


def test_the_table_of_the_standard_types_has_all_of_them() -> None:
    documented = set[str]()
    for classes, what in cells_of("payload, and result"):
        cls: type[Struct] = getattr(span_types, quoted(classes)[0])
        (span_type,) = quoted(what)
        assert (cls.__doc__ or "").startswith(f"``{span_type}``: ")
        documented.add(span_type)
        result = result_type_of(cls)
        assert quoted(classes)[1:] == ([result.__name__] if result else [])
    assert documented == set(span_types.standard_types().list_schemas())


def names_of(group: click.Group) -> Iterator[str]:
    for name, command in group.commands.items():
        yield name
        if isinstance(command, click.Group):
            yield from (f"{name} {inner}" for inner in names_of(command))


@pytest.mark.parametrize("name", sorted(set(names_of(main)) - {"show"}))  # an older name of tree
def test_the_readme_has_every_command(name: str) -> None:
    outer, _, inner = name.partition(" ")
    assert re.search(rf"(`|prefactor_core |{outer} ){inner or outer}\b", TEXT)


def test_the_readme_has_every_extra() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    for extra in extras["optional-dependencies"].keys() - {"dev"}:
        assert f"`{extra}`" in TEXT


def test_every_link_leads_to_a_file() -> None:
    for document in REPOSITORY.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text("utf-8")):
            assert target.startswith("https://") or (REPOSITORY / target).exists(), target
