"""Every Python block of the README runs as it stands, in an empty folder: scripts and tests."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from msgspec import Struct
from msgspec.structs import fields
from support.harness import stored_runs

from prefactor_core import HttpClientConfig, PrefactorCoreConfig, QueueConfig, span_types
from prefactor_core.local import open_local_prefactor

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
TEXT = README.read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
TESTS = [block for block in BLOCKS if "def test_" in block]
SCRIPTS = [block for block in BLOCKS if block not in TESTS]


@pytest.mark.parametrize("block", SCRIPTS, ids=range(len(SCRIPTS)))
def test_a_block_of_the_readme_runs_and_records_without_a_word(block: str, tmp_path: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
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
    if "local:runs.db" in block:
        shape = anyio.run(stored_shape, tmp_path / "runs.db")
        search = [("agent:tool_call", "complete", [])] if "await search(" in block else []
        assert shape == ("complete", [("agent:llm_call", "complete", search)])


async def stored_shape(path: Path) -> tuple[object, ...]:
    async with open_local_prefactor(str(path)) as app:
        (run,) = await stored_runs(app, "my-agent")
    return run.shape


@pytest.mark.parametrize("block", TESTS, ids=range(len(TESTS)))
def test_a_test_of_the_readme_passes_on_both_backends(
    block: str, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(block)
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


def test_the_table_of_the_standard_types_has_all_their_fields() -> None:
    registered = set(span_types.standard_types().list_schemas())
    filled_in = {"inputs", "ai"}

    def names_of(name: str) -> set[str]:
        cls: type[Struct] = getattr(span_types, name)
        return {field.name for field in fields(cls)} - filled_in

    documented = set[str]()
    for names, payload, result in cells_of("class and span type"):
        cls, span_type = quoted(names)
        documented.add(span_type)
        assert set(quoted(payload)) == names_of(cls)
        if result:
            result_cls, *result_fields = quoted(result)
            assert set(result_fields) == names_of(result_cls)
    assert documented == registered


def test_every_link_leads_to_a_file() -> None:
    for document in REPOSITORY.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text("utf-8")):
            assert target.startswith("https://") or (REPOSITORY / target).exists(), target
