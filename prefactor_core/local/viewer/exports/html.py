"""html: the page of a run with its data, in one file that needs no server. Pure but for reading
the page's own files.

The scripts of the page are modules. Written one after another, without their imports, they are one
module: no two of them have a top-level name in common, and none imports in a circle.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from graphlib import TopologicalSorter
from hashlib import sha256
from posixpath import dirname, join, normpath
from typing import Final

import msgspec

from prefactor_core.local.viewer.static import FOLDER

_ENTRY: Final = "boot.js"
_DATA: Final = "{{data}}"

IMPORT: Final = re.compile(r'^import \{([^}]*)\} from "(\.[\w./-]+)";$\n?', re.MULTILINE)
"""The only form of an import: its names, and the path from its folder to the module."""

_EXPORT: Final = re.compile(r"^export (?=(?:async )?function|const|class)", re.MULTILINE)
_STYLESHEET: Final = re.compile(r' *<link rel="stylesheet" href="\{\{static\}\}/([\w./-]+)">\n')
_ICON: Final = re.compile(r'"\{\{static\}\}/([\w.-]+\.svg)"')
_SCRIPT: Final = re.compile(r' *<script type="module" src="[^"]*"></script>\n')


def html(paths: Mapping[str, bytes]) -> bytes:
    """The file; ``paths`` has the JSON answers of the viewer's endpoints that it shows, by path."""
    page = _read("index.html")
    styles = "".join(map(_read, _STYLESHEET.findall(page)))
    # The scripts stay text here, too: nothing in them ends the element.
    script = bundle().replace("</script", "<\\/script").replace("<!--", "<\\!--")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(styles)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    head = (
        f'    <meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"    <style>{styles}</style>\n"
    )
    body = (
        f'    <script type="application/json" id="data">{_DATA}</script>\n'
        f'    <script type="module">{script}</script>\n'
    )
    page = _SCRIPT.sub("", _STYLESHEET.sub("", page))
    page = _ICON.sub(lambda icon: f'"{_data_url(icon[1])}"', page)
    page = _insert(page, "<meta charset", head, after=True)
    before, _, after = _insert(page, "</body>", body).partition(_DATA)
    # Piece by piece: in a thread, one step over all data would hold up all other threads.
    answers = (
        (msgspec.json.encode(path) + b":" + content).replace(b"<", b"\\u003c")
        for path, content in paths.items()
    )
    data = b",".join(answers)
    return b'%b{"paths":{%b}}%b' % (before.encode(), data, after.encode())


def bundle() -> str:
    """The scripts of the page as one module."""
    modules = load_modules()
    order = TopologicalSorter({name: imports_of(name, modules[name]) for name in sorted(modules)})
    texts = (modules[name] for name in order.static_order())
    return "\n".join(_EXPORT.sub("", IMPORT.sub("", text)) for text in texts)


def load_modules() -> dict[str, str]:
    """The scripts that the page loads, by path in the folder of static files."""
    modules: dict[str, str] = {}
    waiting = [_ENTRY]
    while waiting:
        name = waiting.pop()
        if name not in modules:
            modules[name] = _read(name)
            waiting += imports_of(name, modules[name])
    return modules


def imports_of(name: str, module: str) -> list[str]:
    """The paths of the modules that the module ``name`` imports."""
    return [normpath(join(dirname(name), path)) for _, path in IMPORT.findall(module)]


def _insert(page: str, mark: str, text: str, *, after: bool = False) -> str:
    """``page`` with ``text`` before the line that has ``mark``, or after it."""
    lines = page.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if mark in line)
    lines.insert(at + after, text)
    return "".join(lines)


def _read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _data_url(name: str) -> str:
    return f"data:image/svg+xml;base64,{b64encode((FOLDER / name).read_bytes()).decode()}"


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
