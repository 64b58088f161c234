"""JSON Schemas of Python classes: the recorded form of an object fits the schema of its class."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar, Union
from uuid import UUID

import jsonschema
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from support.cases import for_each

from prefactor_core import PrefactorValueError, SpanParams
from prefactor_core.payloads.capture import Capture, fields_of
from prefactor_core.schema_registry.type_schema import result_type_of, schema_of

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Point(NamedTuple):
    x: int
    label: str


class Line(Struct, array_like=True, tag="line"):
    start: int
    end: int = 0


@dataclasses.dataclass
class Place:
    name: str
    height: float | None = None


class Note(TypedDict):
    text: str


Typed = tuple[Any, st.SearchStrategy[Any]]
"""A type, and the values of it."""

NUMBERS = count(1)

# Text with what UTF-8 does not have takes the slower of the two ways to be recorded.
TEXT = st.text(st.characters(codec=None), max_size=5)
LEAVES: list[Typed] = [
    (bool, st.booleans()),
    (int, st.integers(-(2**63), 2**63 - 1)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, TEXT),
    (bytes, st.binary(max_size=5)),
    (None, st.none()),
    (object, st.none() | st.integers(0, 9) | TEXT | st.lists(st.booleans(), max_size=2)),
    (datetime, st.datetimes()),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas(timedelta(0), timedelta(days=9))),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Size, st.sampled_from(Size)),
    (Literal["a", "b"], st.sampled_from(["a", "b"])),
    (Point, st.builds(Point, st.integers(0, 9), TEXT)),
    (Line, st.builds(Line, st.integers(0, 9), st.integers(0, 9))),
    (Place, st.builds(Place, TEXT, st.none() | st.just(1.5))),
    (Note, st.fixed_dictionaries({"text": TEXT})),
]


@st.composite
def structs(draw: st.DrawFn, types: st.SearchStrategy[Typed]) -> Typed:
    """A struct of random fields, defaults and options."""
    fields: list[Any] = []
    values: dict[str, st.SearchStrategy[Any]] = {}
    for name, (kind, known) in draw(
        st.dictionaries(
            st.sampled_from(["alpha", "b_c", "discriminator", "description", "default"]),
            types,
            max_size=4,
        )
    ).items():
        if draw(st.booleans()):
            default = draw(known)
            fields.append(
                (name, kind, msgspec.field(default_factory=lambda default=default: default))
            )
            known = known | st.just(default)
        else:
            fields.append((name, kind))
        values[name] = known
    cls = msgspec.defstruct(
        f"Struct{next(NUMBERS)}",
        fields,
        kw_only=True,
        tag=draw(st.booleans()),
        rename=draw(st.sampled_from([None, "camel", "upper"])),
        omit_defaults=draw(st.booleans()),
        forbid_unknown_fields=draw(st.booleans()),
        frozen=draw(st.booleans()),
    )
    return cls, st.builds(cls, **values)


def containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    make: list[Callable[[Typed], Typed]] = [
        lambda t: (list[t[0]], st.lists(t[1], max_size=3)),
        lambda t: (tuple[t[0], ...], st.lists(t[1], max_size=3).map(tuple)),
        lambda t: (tuple[t[0], int], st.tuples(t[1], st.integers(0, 9))),
        lambda t: (dict[str, t[0]], st.dictionaries(TEXT, t[1], max_size=3)),
        lambda t: (dict[int, t[0]], st.dictionaries(st.integers(0, 9), t[1], max_size=3)),
        lambda t: (dict[Colour, t[0]], st.dictionaries(st.sampled_from(Colour), t[1])),
        lambda t: (Union[t[0], None], st.none() | t[1]),  # noqa: UP007
    ]
    sets: Typed = (set[int], st.sets(st.integers(0, 9)))
    return (
        st.builds(lambda f, t: f(t), st.sampled_from(make), inner) | st.just(sets) | structs(inner)
    )


TYPES = st.recursive(st.sampled_from(LEAVES), containers, max_leaves=6)
INSTANCES = structs(TYPES).flatmap(lambda typed: typed[1])

WAYS = {
    "as it is": Capture(),
    "through a function that redacts": Capture(redact=lambda payload: payload),
}


@pytest.mark.parametrize("way", WAYS)
@given(instance=INSTANCES)
def test_what_is_recorded_of_a_struct_fits_its_schema(way: str, instance: Struct) -> None:
    schema = schema_of("x", "params", type(instance))
    jsonschema.Draft202012Validator.check_schema(schema)
    for payload in (instance, fields_of(instance)):
        recorded = msgspec.json.decode(WAYS[way](payload))
        jsonschema.validate(recorded, schema, jsonschema.Draft202012Validator)


class Leaf(Struct):
    """One
    leaf."""

    name: str


class Branch(Struct):
    left: Leaf
    right: Leaf | None = None


class Knot(Struct):
    knots: list[Knot] = []


class Loop(Struct):
    knot: Knot


Node: TypeAlias = "One | Two | Three | Four | Five | Six | Seven | Eight | Nine"


class One(Struct, tag=True):
    inner: Node


class Two(One, tag=True): ...


class Three(One, tag=True): ...


class Four(One, tag=True): ...


class Five(One, tag=True): ...


class Six(One, tag=True): ...


class Seven(One, tag=True): ...


class Eight(One, tag=True): ...


class Nine(One, tag=True): ...


class Cat(Struct, tag=True):
    name: str


class Dog(Struct, tag=True):
    name: str


class Owner(Struct):
    pet: Cat | Dog


class Box(Struct, Generic[T]):
    inside: T


def test_references_are_resolved() -> None:
    leaf = {
        "title": "Leaf",
        "description": "One\nleaf.",
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    }
    schema = schema_of("x", "params", Branch)
    # Which is first depends on the version of msgspec.
    assert sorted(schema["properties"]["right"].pop("anyOf"), key=len) == [{"type": "null"}, leaf]
    assert schema == {
        "title": "Branch",
        "type": "object",
        "properties": {"left": leaf, "right": {}},
        "required": ["left"],
    }


@for_each("cls", [Knot, Loop])
def test_only_what_refers_to_itself_keeps_its_definition(cls: type) -> None:
    schema = schema_of("x", "params", cls)
    assert list(schema["$defs"]) == ["Knot"]
    knots = {"knots": [{"knots": []}]}
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(knots if cls is Knot else {"knot": knots})
    assert not validator.is_valid({"knots": [3]} if cls is Knot else {"knot": {"knots": [3]}})


def test_a_schema_has_no_defaults() -> None:
    # They may come from the environment, or be in no order.
    @dataclasses.dataclass
    class Call:
        default: str
        key: str = "sk-123"
        place: Place = dataclasses.field(default_factory=lambda: Place("sk-123"))
        tags: frozenset[str] = frozenset({"sk-123"})

    class Model(pydantic.BaseModel):
        default: str
        key: str = "sk-123"
        colour: Colour = Colour.RED

    for cls in (Call, Model):
        schema = schema_of("x", "params", cls)
        assert "default" in schema["properties"]
        assert "sk-123" not in repr(schema)


def test_types_that_refer_to_each_other_are_described_once_each() -> None:
    schema = schema_of("x", "params", One)
    assert len(schema["$defs"]) == 9
    assert len(msgspec.json.encode(schema)) < 5_000


def test_a_tagged_union_has_no_keyword_of_openapi_in_its_schema() -> None:
    schema = schema_of("x", "params", Owner)
    assert "discriminator" not in repr(schema)
    assert "$ref" not in repr(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"pet": {"type": "Cat", "name": "Tom"}})
    assert not validator.is_valid({"pet": {"type": "Cow", "name": "Tom"}})


def test_a_generic_struct_has_the_schema_of_its_parameters() -> None:
    assert schema_of("x", "params", Box[int])["properties"] == {"inside": {"type": "integer"}}


@for_each("cls", [Place, Note, dataclasses.make_dataclass("Made", [("name", str)], slots=True)])
def test_dataclasses_and_typed_dicts_have_schemas(cls: type) -> None:
    assert schema_of("x", "result", cls)["type"] == "object"


@for_each(
    ("cls", "message"),
    [
        (int, "params of 'x' must be a class that is an object in JSON, got int"),
        (Point, "params of 'x' must be a class that is an object in JSON, got Point"),
        (Leaf("xyzzy"), "params of 'x', a Leaf, has no JSON Schema"),
        ({"type": "object"}, "params of 'x', a dict, has no JSON Schema: "),
        (msgspec.defstruct("Locked", [("lock", type)]), "type <class 'type'> is not supported"),
    ],
)
def test_what_is_no_class_of_fields_is_refused(cls: Any, message: str) -> None:
    with pytest.raises(PrefactorValueError, match=re.escape(message)):
        schema_of("x", "params", cls)


def test_a_class_says_what_its_spans_result_in() -> None:
    class Ask(Struct, SpanParams[Leaf]):
        prompt: str

    class Again(Ask):
        times: int = 2

    @dataclasses.dataclass
    class Search(SpanParams[Place]):
        query: str

    assert result_type_of(Ask) is result_type_of(Again) is Leaf

    class Find(Struct, SpanParams[Place], Generic[T]):
        what: T

    assert result_type_of(Search) is result_type_of(Find[int]) is Place
    assert result_type_of(Leaf) is None
    for unknown in (Any, object, T, "Late"):
        bases = (SpanParams[unknown],)  # type: ignore[valid-type]
        assert result_type_of(types.new_class("Vague", bases)) is None
    assert Again("Hello") == Again(prompt="Hello", times=2)


class TestModelsOfPydantic:
    """Pydantic is never imported by us: its models say what they are."""

    def test_it_is_not_imported(self) -> None:
        import subprocess

        code = (
            "import sys, prefactor_core.span_types as s; s.standard_types(); "
            "print('pydantic' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        assert done.stdout == "False\n"

    @pytest.mark.parametrize("by_alias", [True, False])
    def test_a_model_is_recorded_as_its_schema_says(self, by_alias: bool) -> None:
        class Inner(pydantic.BaseModel):
            n: int

        class Model(pydantic.BaseModel, SpanParams[Leaf]):
            model_config = pydantic.ConfigDict(
                serialize_by_alias=by_alias, extra="forbid", validate_by_name=True
            )

            prompt: str = pydantic.Field(alias="thePrompt")
            inner: Inner
            at: datetime
            price: Decimal
            parent: Model | None = None

            @pydantic.computed_field
            @property
            def length(self) -> int:
                return len(self.prompt)

        at = datetime(2026, 1, 2, 3, 4, 5)
        inside = Model(prompt="x", inner=Inner(n=1), at=at, price=Decimal("1.5"))
        model = Model(prompt="Hello", inner=Inner(n=1), at=at, price=Decimal(2), parent=inside)
        schema = schema_of("x", "params", Model)
        for payload in (model, fields_of(model)):
            recorded = msgspec.json.decode(Capture()(payload))
            assert recorded["thePrompt" if by_alias else "prompt"] == "Hello"
            assert recorded["length"] == 5
            jsonschema.validate(recorded, schema, jsonschema.Draft202012Validator)
        assert result_type_of(Model) is Leaf
