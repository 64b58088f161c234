"""Messages to and from models, in the one form that the standard span types show. Pure.

``{"role": ..., "content": ..., "tool_calls": [{"id", "name", "arguments"}]}``; ``content`` is a
text, or a list of parts, of which those of text have ``text``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

import msgspec

Fields = Mapping[str, object]

# Most are of the first type each. A test for an abstract class takes longer, with a text above all.
MAPPINGS: Final = (dict, Mapping)
_SEQUENCES: Final = (list, tuple)

_JSON: Final = ("{", "[", '"')
_WRAPPERS: Final = ("message", "tool_call", "message_content", "document", "tool")
"""The keys that OpenInference puts around each item of a list."""

_CALL: Final = ("id", "name", "arguments")

_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "text": ("content",),
    "reasoning": ("content",),
    "thinking": ("content",),
    "tool_call_response": ("response", "result"),
}
"""The types of parts, with the keys of their text."""

_ROLES: Final = {
    "model": "assistant",  # Gemini
    "human": "user",  # LangChain
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function_call": "assistant",  # OpenAI's responses, LiveKit
    "function_call_output": "tool",
    "agent_config_update": "system",
    "agent_handoff": "system",
}
"""The roles of messages that say these roles or, without a role, these types."""

_LISTS: Final = ("messages", "items", "contents", "choices", "generations")
"""The keys of messages in what a model is given and answers."""


def decoded(value: object) -> object:
    """The value of a text of JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in _JSON:
        try:
            return cast("object", msgspec.json.decode(value))
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return value  # it was cut, or is only like JSON
    return value


def items(value: object) -> list[object]:
    """The items of a list, each decoded; any other value is the only item."""
    value = decoded(value)
    if isinstance(value, _SEQUENCES):
        return [decoded(item) for item in cast("Sequence[object]", value)]
    return [value]


def unwrapped(item: object) -> object:
    """An item of a list of OpenInference without the key around it."""
    if not isinstance(item, MAPPINGS):
        return item
    fields = cast("Fields", item)
    if len(fields) == 1 and (key := next(iter(fields))) in _WRAPPERS:
        return decoded(fields[key])
    return fields


def to_messages(value: object, role: str = "user") -> list[dict[str, object]]:
    """The messages of a list, of its JSON, or of a text. ``role``: of those that have none."""
    given, found = decoded(value), None
    if isinstance(given, MAPPINGS):
        found, _ = found_messages(cast("Fields", given))
    return [_message(unwrapped(item), role) for item in (items(value) if found is None else found)]


def found_messages(value: object) -> tuple[list[object] | None, Fields]:
    """The messages in what a model was given or answers, and what else there is: a request or
    answer of an API, or values of a framework. None without messages."""
    given = decoded(value)
    if not isinstance(given, MAPPINGS):
        return None, {}
    fields = dict(cast("Fields", given))
    for key in _LISTS:
        if isinstance(fields.get(key), list):
            found = [each for item in items(fields.pop(key)) for each in _flat(item)]
            return [_answer(item) for item in found], fields
    content = fields.pop("content", None)
    if isinstance(content, MAPPINGS) and "parts" in content:  # Gemini
        return [cast("object", content)], fields
    return None, {}


def _flat(item: object) -> list[object]:
    """The items of a batch; any other item alone."""
    return cast("list[object]", item) if isinstance(item, list) else [item]


def _answer(item: object) -> object:
    """The message of one choice of a model, with the reason of its end; any other item as it is."""
    if not isinstance(item, MAPPINGS):
        return item
    fields = cast("Fields", item)
    if not isinstance(fields.get("message"), MAPPINGS):
        return fields
    details = fields.get("generation_info")  # LangChain
    reason = {**cast("Fields", details or {}), **fields}.get("finish_reason")
    message = cast("Fields", fields["message"])
    return message if reason is None else {**message, "finish_reason": reason}


def _message(item: object, role: str) -> dict[str, object]:
    if not isinstance(item, MAPPINGS):
        return {"role": role, "content": item}
    fields = dict(cast("Fields", item))
    if fields.get("type") == "constructor":  # LangChain
        fields |= cast("Fields", fields.pop("kwargs", {}))
        for key in ("lc", "id"):
            fields.pop(key, None)
    kind = fields.get("type")
    said = fields.get("role", kind)
    fields["role"] = _ROLES.get(str(said), fields.get("role", role))
    if kind == "function_call":
        return {"role": fields.pop("role"), "tool_calls": [tool_call(fields)]}
    if kind == "function_call_output":
        fields["content"] = fields.pop("output", None)
    parts = fields.pop("parts", fields.pop("contents", None))
    if parts is None:
        parts = fields.get("content")
    if isinstance(parts, _SEQUENCES):
        content, calls = _content(cast("Sequence[object]", parts))
        fields["content"] = content
        if calls:
            fields["tool_calls"] = calls
    if "tool_calls" in fields:
        fields["tool_calls"] = [tool_call(call) for call in items(fields["tool_calls"])]
    return fields


def _content(parts: Sequence[object]) -> tuple[object, list[object]]:
    """The content of a message in parts, and the calls of tools among them."""
    content: list[object] = []
    calls: list[object] = []
    texts: list[str] = []
    for part in map(unwrapped, parts):
        fields = cast("Fields", part) if isinstance(part, MAPPINGS) else {"text": part}
        kind = fields.get("type")
        call = fields.get("toolUse") or fields.get("function_call")  # Bedrock, Gemini
        if call is not None and isinstance(call, MAPPINGS):
            calls.append(cast("object", call))
            continue
        if kind == "tool_call":
            calls.append({key: fields[key] for key in _CALL if key in fields})
            continue
        if isinstance(kind, str) and kind in _TEXTS and "text" not in fields:
            keys = _TEXTS[kind]
            fields = {("text" if key in keys else key): fields[key] for key in fields}
        else:
            fields = dict(fields)
        content.append(fields)
        text = fields.get("text")
        # A part that has nothing else.
        if isinstance(text, str) and len(fields) == 1 + ("type" in fields):
            texts.append(text)
    return ("\n".join(texts) if len(texts) == len(content) else content), calls


def tool_call(item: object) -> dict[str, object]:
    """A call of a tool by a model: ``id``, ``name`` and ``arguments``, and what else it has."""
    item = unwrapped(item)
    if not isinstance(item, MAPPINGS):
        return {"name": item}
    fields = dict(cast("Fields", item))
    function = fields.pop("function", None)
    if isinstance(function, MAPPINGS):
        fields |= cast("Fields", function)
    elif function is not None:
        fields["name"] = function
    for key in ("input", "args"):
        if key in fields:
            fields.setdefault("arguments", fields.pop(key))
    for key in ("toolUseId", "call_id"):
        if key in fields:
            fields["id"] = fields.pop(key)
    if "arguments" in fields:
        fields["arguments"] = decoded(fields["arguments"])
    return fields


def text_of(messages: Sequence[Fields]) -> str | None:
    """The text of answers of a model; None if there is none."""
    texts = [text for message in messages for text in _texts(message.get("content"))]
    return "\n".join(texts) or None


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[object]", content):
            if isinstance(part, MAPPINGS):
                text = cast("Fields", part).get("text")
                if isinstance(text, str):
                    yield text


def nested(pairs: Sequence[tuple[str, object]]) -> list[object]:
    """The list of indexed attributes: ``("0.message.role", "user")`` is in its first item.

    Items stand in the order of their indexes, without gaps.
    """
    root: dict[str, object] = {}
    for path, value in pairs:
        *way, last = path.split(".")
        node = root
        for step in way:
            below = node.get(step)
            if not isinstance(below, dict):
                node[step] = below = dict[str, object]()
            node = cast("dict[str, object]", below)
        node.setdefault(last, value)
    found = _lists(root, 0)
    return cast("list[object]", found) if isinstance(found, list) else [found]


_DEEPEST: Final = 20


def _lists(node: object, depth: int) -> object:
    """Make lists of those mappings whose keys are all indexes."""
    if not isinstance(node, dict):
        return node
    fields = cast("dict[str, object]", node)
    if depth > _DEEPEST:
        return fields
    if fields and all(key.isascii() and key.isdigit() and len(key) < 10 for key in fields):
        return [_lists(fields[key], depth + 1) for key in sorted(fields, key=int)]
    return {key: _lists(value, depth + 1) for key, value in fields.items()}
