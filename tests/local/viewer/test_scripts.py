"""The scripts of the pages: the rules by which they can be written one after another."""

from __future__ import annotations

import re
from collections import Counter
from graphlib import TopologicalSorter
from posixpath import dirname

from support.cases import for_each

from prefactor_core.local.viewer.exports.html import IMPORT, bundle, imports_of, load_modules
from prefactor_core.local.viewer.static import FOLDER

MODULES = load_modules()
LAYERS = ["elements", "values", "server tree", "span views", "lists run", ""]
"""The folders of the scripts, the lowest layer first; above all is the frame of the pages."""

EXPORTED = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)
TOP_LEVEL = re.compile(
    r"^(?:export )?(?:async )?(?:function\*?|const|let|var|class) (?:(\w+)|[{\[]([^}\]]*)[}\]])",
    re.MULTILINE,
)


def names_in(module: str) -> list[str]:
    """The names that a module has at its top level."""
    names: list[str] = []
    for name, several in TOP_LEVEL.findall(module):
        names += [name] if name else re.findall(r"(\w+)\s*(?:,|$)", several)
    return names


@for_each("name", sorted(MODULES))
def test_a_module_imports_and_exports_in_one_form_only(name: str) -> None:
    text = MODULES[name]
    assert len(re.findall(r"^import\b", text, re.MULTILINE)) == len(IMPORT.findall(text))
    assert len(re.findall(r"^export\b", text, re.MULTILINE)) == len(EXPORTED.findall(text))
    assert not re.search(r"\bimport\(|\bimport\.meta\b|\beval\(|\bnew Function\(", text)
    assert not re.search(r"\b(?:inner|outer)HTML\b|\binsertAdjacentHTML\b", text)


@for_each("name", sorted(MODULES))
def test_every_imported_name_is_exported_there(name: str) -> None:
    modules = imports_of(name, MODULES[name])
    for (names, _), module in zip(IMPORT.findall(MODULES[name]), modules, strict=True):
        wanted = [each.strip() for each in names.split(",") if each.strip()]
        assert all(re.fullmatch(r"\w+", each) for each in wanted), f"an alias in {name}"
        exported = EXPORTED.findall(MODULES[module])
        assert set(wanted) <= set(exported), f"{name} imports from {module}"


def test_no_two_modules_have_a_top_level_name_in_common() -> None:
    counts = Counter(name for text in MODULES.values() for name in names_in(text))
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = TopologicalSorter({name: imports_of(name, text) for name, text in MODULES.items()})
    assert [*order.static_order()][-1] == "boot.js"


@for_each("name", sorted(MODULES))
def test_a_module_imports_only_from_its_folder_and_from_layers_below(name: str) -> None:
    folder = dirname(name)
    height = next(i for i, folders in enumerate(LAYERS) if folder in folders.split(" "))
    below = " ".join(LAYERS[:height]).split()
    assert {dirname(module) for module in imports_of(name, MODULES[name])} <= {folder, *below}


def test_every_script_is_loaded_by_the_page() -> None:
    assert sorted(MODULES) == sorted(
        path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js")
    )


def test_no_script_has_more_than_400_lines() -> None:
    assert {n: len(t.splitlines()) for n, t in MODULES.items() if t.count("\n") > 400} == {}


def test_the_bundle_has_every_module_after_those_that_it_imports() -> None:
    text = bundle()
    assert not re.search(r"^(?:import|export)\b", text, re.MULTILINE)
    for module in MODULES.values():
        for name in EXPORTED.findall(module):
            assert re.search(rf"^(?:async )?(?:function|const|class) {name}\b", text, re.MULTILINE)
    assert text.rstrip().endswith("start();")
