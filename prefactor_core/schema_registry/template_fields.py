"""The fields that a template shows, and whether the schemas know them. Pure.

Templates are Liquid over the merged payload and result; the service renders them. Only the
``{{…}}`` parts are read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from prefactor_core.exceptions import PrefactorValueError

_LEFT_OUT = re.compile(
    r"\{%-?\s*(raw|comment)\s*-?%\}.*?\{%-?\s*end\1\s*-?%\}|\{%-?\s*#.*?%\}", re.DOTALL
)
_SHOWN = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
# Names that tags define: {% assign x = … %}, {% capture x %}, {% for x in … %}; or lines of
# {% liquid … %}.
_NAMED = re.compile(
    r"(?:\{%-?|^)\s*(?:assign|capture|for|tablerow|increment|decrement)\s+([\w-]+)", re.MULTILINE
)
_PATH = re.compile(r"(?<![\w.\]\"'-])[A-Za-z_][\w-]*(?:\.[\w-]+\??|\[[^\]]*\])*")
_PART = re.compile(r"\.([\w-]+)|\[\s*(?:\"([^\"]*)\"|'([^']*)'|[^\]]*)\s*\]")

_OF_LIQUID = {"true", "false", "nil", "null", "blank", "empty", "forloop", "tablerowloop"}
_OF_LISTS_AND_TEXTS = {"size", "first", "last"}

# Every failed span has this in its result.
_ERROR: dict[str, Any] = {"error": {"properties": {"type": {}, "message": {}, "stacktrace": {}}}}


def check_template(name: str, template: str, *schemas: Mapping[str, Any] | None) -> None:
    """Raise :class:`PrefactorValueError` for a field that none of the ``schemas`` knows.

    The message names the field, the span type and the nearest field. A schema that does not list
    its fields knows all.
    """
    if "{{" in _SHOWN.sub("", _LEFT_OUT.sub("", template)):
        raise PrefactorValueError(f"template of {name!r} has a {{{{ without }}}}: {template!r}")
    known = [{"properties": _ERROR}, *(schema for schema in schemas if schema is not None)]
    for path in shown_fields(template):
        _check_path(name, path, known)


def shown_fields(template: str) -> list[tuple[str, ...]]:
    """Return the paths of the fields that a template shows, in order; each a tuple of names."""
    template = _LEFT_OUT.sub("", template)
    given = set(_NAMED.findall(template)) | _OF_LIQUID
    paths: list[tuple[str, ...]] = []
    for shown in _SHOWN.findall(template):
        value, *filters = _split(shown)
        # The arguments of a filter stand behind its colon, some with names.
        arguments = [re.sub(r"[\w-]+\s*:", "", each.partition(":")[2]) for each in filters]
        for text in (value, *arguments):
            paths += [path for path in _paths(text) if path[0] not in given]
    return paths


def _split(shown: str) -> list[str]:
    """Split at the bars between filters, but not inside of quoted texts."""
    parts: list[str] = [""]
    for piece in re.split(r"(\"[^\"]*\"|'[^']*'|\|)", shown):
        if piece == "|":
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _paths(expression: str) -> Iterable[tuple[str, ...]]:
    # Without quoted texts, except in brackets, where they are names.
    bare = re.sub(r"(\[\s*)?(\"[^\"]*\"|'[^']*')", lambda m: m[0] if m[1] else "", expression)
    for match in _PATH.finditer(bare):
        root = re.split(r"[.\[]", match[0], maxsplit=1)[0]
        path = [root]
        for part in _PART.finditer(match[0], len(root)):
            key = part[1] or part[2] or part[3]
            if key is None:
                break  # an index: the items of a list are not looked at
            path.append(key)
        yield tuple(path)


def _check_path(name: str, path: tuple[str, ...], schemas: Sequence[Mapping[str, Any]]) -> None:
    for depth, key in enumerate(path):
        known: dict[str, list[Mapping[str, Any]]] = {}
        for schema in schemas:
            fields = _fields_of(schema)
            if fields is None:
                return
            for field, below in fields.items():
                known.setdefault(field, []).append(below)
        if key not in known:
            if depth and key in _OF_LISTS_AND_TEXTS:
                return
            shown = ".".join(path[: depth + 1])
            import difflib  # here: it takes milliseconds to import

            near = difflib.get_close_matches(key, known, 1, cutoff=0.0)
            nearest = f"; the nearest field is {'.'.join((*path[:depth], *near))!r}" if near else ""
            raise PrefactorValueError(
                f"template of {name!r} shows {{{{{shown}}}}}, which no schema of it has{nearest}"
            )
        schemas = known[key]


def _fields_of(schema: object) -> Mapping[str, Mapping[str, Any]] | None:
    """Return the fields of an object, {} for another type; None if there may be any fields."""
    if not isinstance(schema, Mapping):
        return None
    parts = cast("Mapping[str, Any]", schema)
    if any(key in parts for key in ("$ref", "anyOf", "oneOf", "allOf", "patternProperties")):
        return None
    if parts.get("additionalProperties", False) is not False:
        return None
    if "properties" in parts:
        return cast("Mapping[str, Mapping[str, Any]]", parts["properties"])
    return {} if parts.get("type") not in (None, "object") else None
