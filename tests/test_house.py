"""The house rules of the package: short modules, few names, and a way into each room."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from support.cases import for_each

import prefactor_core

PACKAGE = Path(prefactor_core.__file__).parent
# Import paths of earlier versions, without code of their own.
OLDER_PATHS = {"managers", "monitoring", "runtime.py", "span_context.py", "utils.py"}
ROOMS = sorted({path.parent.name for path in PACKAGE.glob("*/__init__.py")} - OLDER_PATHS)


def test_no_module_has_more_than_400_lines() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lengths) > 100
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_the_root_of_the_package_has_at_most_25_entries_beside_older_import_paths() -> None:
    # A folder that an earlier version left with nothing but bytecode is none.
    entries = {path.name for path in PACKAGE.iterdir() if path.is_file() or any(path.rglob("*.py"))}
    assert entries >= OLDER_PATHS
    assert len(entries - OLDER_PATHS) <= 25, sorted(entries)


@for_each("path", sorted(OLDER_PATHS))
def test_an_older_import_path_has_no_code_of_its_own(path: str) -> None:
    modules = [PACKAGE / path] if path.endswith(".py") else sorted((PACKAGE / path).rglob("*.py"))
    for module in modules:
        docstring, *rest = ast.parse(module.read_text("utf-8")).body
        assert isinstance(docstring, ast.Expr)
        assert [type(node) for node in rest[:-1]] == [ast.ImportFrom] * (len(rest) - 1)
        assert isinstance(rest[-1], ast.Assign)  # __all__


@for_each("room", ROOMS)
def test_a_room_names_the_file_to_read_first(room: str) -> None:
    text = (PACKAGE / room / "__init__.py").read_text("utf-8")
    docstring = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    first = re.search(r"Read (?:this file|``(\w+)``) first", docstring)
    assert first is not None, docstring
    assert (PACKAGE / room / f"{first[1] or '__init__'}.py").is_file()
