"""Facts: what the attributes and events of a span say, in one vocabulary for all dialects. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol, cast

from msgspec import Struct

from prefactor_core.otel.dialect import LLM, Dialect
from prefactor_core.otel.gen_ai import CHOICE, DETAILS, GEN_AI, ROLES
from prefactor_core.otel.google_adk import GOOGLE_ADK
from prefactor_core.otel.langsmith import LANGSMITH
from prefactor_core.otel.livekit import LIVEKIT
from prefactor_core.otel.messages import decoded, nested, to_messages
from prefactor_core.otel.openinference import OPENINFERENCE
from prefactor_core.otel.openllmetry import OPENLLMETRY
from prefactor_core.otel.pydantic_ai import PYDANTIC_AI

_DIALECTS: Final[tuple[Dialect, ...]] = (
    LANGSMITH,
    GEN_AI,
    PYDANTIC_AI,
    GOOGLE_ADK,
    LIVEKIT,
    OPENINFERENCE,
    OPENLLMETRY,
)
"""If two attributes are the same fact, that of the earlier dialect counts."""

_FACTS: Final = {
    attribute: (fact, rank)
    for rank, (attribute, fact) in enumerate(
        pair for dialect in _DIALECTS for pair in dialect.facts.items()
    )
}
"""The fact of each attribute, and its rank: the lowest one counts."""

_KINDS: Final = [pair for dialect in _DIALECTS for pair in dialect.kinds.items()]
_KIND_KEYS: Final = frozenset(key for key, _ in _KINDS)
_LISTS: Final = [pair for dialect in _DIALECTS for pair in dialect.lists.items()]
_LIST_STARTS: Final = tuple(prefix for prefix, _ in _LISTS)
_NAMED: Final = [dialect for dialect in _DIALECTS if dialect.names]
_FAILED: Final[tuple[object, ...]] = ("error", True)
_LATE: Final = frozenset[str]().union(*(dialect.late for dialect in _DIALECTS))


class Event(Protocol):
    """An event of a span, as the SDK of OpenTelemetry has it."""

    @property
    def name(self) -> str: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def attributes(self) -> Mapping[str, object] | None: ...


class Facts(Struct):
    """What a span says of itself.

    ``span_type``: its type; None if it does not say. ``values``: the facts, which :meth:`take`
    removes. ``attributes``: the attributes that are no fact. ``names``: those of facts, by fact.
    ``events``: those that are no messages. ``error_type``: the type of its error, by an attribute.
    ``has_failed``: whether an attribute says that it failed.
    """

    values: dict[str, object]
    attributes: dict[str, object]
    names: dict[str, str]
    span_type: str | None = None
    events: list[Event] = []
    error_type: object = None
    has_failed: bool = False

    def take(self, *facts: str) -> object:
        """The first of these facts that there is, once; None without any."""
        for fact in facts:
            if fact in self.values:
                self.names.pop(fact, None)
                return self.values.pop(fact)
        return None

    def keep(self, fact: str) -> None:
        """Leave a fact among the attributes."""
        if fact in self.values:
            self.attributes[self.names.pop(fact)] = self.values.pop(fact)

    def rest(self) -> dict[str, object]:
        """The attributes that are no fact, and those of facts that were not taken."""
        rest = {self.names[fact]: self.values[fact] for fact in self.names}
        return self.attributes | rest


def is_late(scope: str) -> bool:
    """Whether the spans of an instrumentation scope have their attributes only at the end."""
    return scope in _LATE


def read(
    name: str, scope: str, attributes: Mapping[str, object], events: Sequence[Event] = ()
) -> Facts:
    """Read a span by its name, instrumentation scope, attributes and events.

    The attributes may be those of a span that has just begun.
    """
    messages: list[dict[str, object]] = []
    answers: list[dict[str, object]] = []
    others: list[Event] = []
    for event in events:
        details = event.attributes or {}
        if event.name in ROLES:
            messages += _messages_of(details, ROLES[event.name])
        elif event.name == CHOICE:
            answers += _messages_of(details, "assistant")
        elif event.name == DETAILS:
            attributes = {**details, **attributes}
        else:
            others.append(event)
    facts = _facts(attributes)
    facts.span_type = span_type(name, scope, attributes)
    facts.events = others
    facts.error_type = facts.take("error_type")
    facts.has_failed = facts.values.get("failure") in _FAILED
    if messages:
        facts.values.setdefault("messages", messages)
    if answers:
        facts.values.setdefault("answers", answers)
        reason = answers[-1].pop("finish_reason", None)
        if reason is not None:
            facts.values.setdefault("finish_reason", reason)
    return facts


def _facts(attributes: Mapping[str, object]) -> Facts:
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    others: dict[str, object] = {}
    ranks: dict[str, int] = {}
    indexed: dict[tuple[str, str], list[tuple[str, object]]] = {}
    for key, value in attributes.items():
        if key in _FACTS:
            fact, rank = _FACTS[key]
            if rank < ranks.get(fact, len(_FACTS)):
                ranks[fact], values[fact], names[fact] = rank, value, key
        elif key in _KIND_KEYS:
            pass
        elif key.startswith(_LIST_STARTS):
            prefix, fact = entry = next(each for each in _LISTS if key.startswith(each[0]))
            indexed.setdefault(entry, []).append((key[len(prefix) :], value))
        else:
            others[key] = value
    for (prefix, fact), pairs in indexed.items():
        if fact not in values:
            values[fact], names[fact] = nested(pairs), prefix.rstrip(".")
    return Facts(values, others, names)


@lru_cache(maxsize=256)
def _names_in(scope: str) -> Sequence[Mapping[str, str]]:
    return [dialect.names for dialect in _NAMED if scope.startswith(dialect.scope)]


def span_type(name: str, scope: str, attributes: Mapping[str, object]) -> str | None:
    """The span type that a span says; None if it says none."""
    says_something = not _KIND_KEYS.isdisjoint(attributes)
    if says_something:
        for key, types in _KINDS:
            kind = attributes.get(key)
            if isinstance(kind, str) and kind.lower() in types:
                return types[kind.lower()]
    for names in _names_in(scope):
        found = names.get(name.partition(" ")[0].rpartition(".")[2]) or names.get("*")
        if found is not None:
            return found
    if "gen_ai.request.model" in attributes and not says_something:
        return LLM
    return None


def _messages_of(details: Mapping[str, object], role: str) -> list[dict[str, object]]:
    """The messages of an event, in any of the forms that were emitted."""
    given = decoded(details.get("gen_ai.event.content", details.get("message")))
    fields: dict[str, object] = (
        dict(cast("Mapping[str, object]", given))
        if isinstance(given, Mapping)
        else dict(details)
        if given is None
        else {"content": given}
    )
    message = decoded(fields.get("message"))
    if isinstance(message, Mapping):
        fields |= cast("Mapping[str, object]", message)
        del fields["message"]
    fields["content"] = decoded(fields.get("content"))
    found = to_messages([fields], role)
    for key in ("finish_reason", "gen_ai.response.finish_reason"):
        if key in details:
            found[-1]["finish_reason"] = details[key]
    for message in found:
        for key in [key for key in message if key.startswith("gen_ai.") or key == "event.name"]:
            del message[key]
    return found
