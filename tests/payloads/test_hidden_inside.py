"""Fields that a value hides in its ``repr`` are hidden at every place, also inside of models."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import attrs
import pydantic
import pytest
import wrapt
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.examples import examples

from prefactor_core import HttpClientConfig
from prefactor_core.payloads.capture import Capture
from prefactor_core.payloads.error_description import describe_error

CANARY = "canary-7f3a"
NOTHING_REDACTED = Capture()


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    user: str = "me"
    hidden: str = pydantic.Field(default=CANARY, repr=False)


@dataclasses.dataclass(frozen=True)
class Record:
    user: str = "me"
    hidden: str = dataclasses.field(default=CANARY, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    user: str = "me"
    hidden: str = dataclasses.field(default=CANARY, repr=False)


@pydantic.dataclasses.dataclass(frozen=True)
class Checked:
    user: str = "me"
    hidden: str = pydantic.Field(default=CANARY, repr=False)


@attrs.frozen
class Attrs:
    user: str = "me"
    hidden: str = attrs.field(default=CANARY, repr=False)


class Pair(NamedTuple):
    first: Any
    second: Any


class Numbered(enum.Enum):
    ONE = 1


class Holder(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    held: Any


class Renamed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)
    held: Any = pydantic.Field(serialization_alias="other")


class Computing(pydantic.BaseModel):
    source: list[Any] = pydantic.Field(exclude=True)

    @pydantic.computed_field
    def made(self) -> Any:
        return self.source[0]


@dataclasses.dataclass
class Outer:
    held: Any


class More(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")


HIDING: dict[str, Callable[[], object]] = {
    "model": Model,
    "dataclass": Record,
    "dataclass with slots": Slots,
    "dataclass of pydantic": Checked,
    "attrs": Attrs,
    "the token": lambda: HttpClientConfig(api_url="https://x.y", api_token=CANARY).api_token,
    "the configuration": lambda: HttpClientConfig(api_url="https://x.y", api_token=CANARY),
    "secret of pydantic": lambda: pydantic.SecretStr(CANARY),
}
CONTAINERS: dict[str, Callable[[Any], object]] = {
    "list": lambda value: [value],
    "tuple": lambda value: (1, value),
    "named tuple": lambda value: Pair(1, value),
    "deque": lambda value: deque([value]),
    "dict": lambda value: {"a": 1, "b": value},
    "dict with numbers as keys": lambda value: {1: value},
    "dict with members as keys": lambda value: {Numbered.ONE: value},
    "defaultdict": lambda value: defaultdict(list, a=value),
    "ordered dict": lambda value: OrderedDict(a=value),
    "user dict": lambda value: UserDict(a=value),
    "namespace": lambda value: SimpleNamespace(a=value),
    "proxy": wrapt.ObjectProxy,
    "dataclass": Outer,
    "model": lambda value: Holder.model_construct(held=value),
    "model with an alias": lambda value: Renamed.model_construct(held=value),
    "model with more": lambda value: More.model_construct(more=value),
    "root model": lambda value: pydantic.RootModel[Any].model_construct(root=value),
    "computed field": lambda value: Computing.model_construct(source=[value]),
}


@settings(max_examples=examples(150))
@given(
    st.sampled_from([*HIDING]),
    st.lists(st.sampled_from([*CONTAINERS]), max_size=4),
)
@example("model", ["root model"])
@example("model", ["dict with numbers as keys", "model"])
@example("model", ["model with an alias"])
@example("model", ["computed field"])
@example("model", ["list", "computed field", "model"])
@example("model", ["named tuple", "model"])
@example("model", ["deque", "model"])
@example("model", ["proxy", "model"])
@example("dataclass with slots", ["model"])
@example("the token", ["model"])
@example("the token", ["dict", "model"])
def test_what_a_value_hides_is_not_recorded_wherever_it_stands(
    hiding: str, containers: list[str]
) -> None:
    value = HIDING[hiding]()
    for name in containers:
        value = CONTAINERS[name](value)
    recorded = bytes(NOTHING_REDACTED({"payload": value}))
    assert CANARY.encode() not in recorded
    assert b"unreadable" not in recorded


def test_what_stands_beside_what_is_hidden_is_recorded() -> None:
    holder = Holder(held={1: [Model()], 2: (Slots(), 3)})
    hidden = b'{"user":"me","hidden":"[redacted]"}'
    recorded = bytes(NOTHING_REDACTED({"a": holder}))
    assert recorded == b'{"a":{"held":{"1":[%s],"2":[%s,3]}}}' % (hidden, hidden)


def test_the_token_that_is_a_key_in_a_model_is_not_recorded() -> None:
    token = HIDING["the token"]()
    assert CANARY.encode() not in bytes(NOTHING_REDACTED({"a": Holder(held={token: 1})}))


@dataclasses.dataclass
class RecordError(Exception):
    status: int
    hidden: str = dataclasses.field(repr=False)


@attrs.define(auto_exc=True)
class AttrsError(Exception):
    status: int
    hidden: str = attrs.field(repr=False)


@pytest.mark.parametrize("kind", [RecordError, AttrsError])
def test_an_exception_says_no_more_than_its_repr_where_that_hides_something(kind: Any) -> None:
    error = kind(401, CANARY)
    for text in (str(describe_error(error)), bytes(NOTHING_REDACTED({"error": error})).decode()):
        assert CANARY not in text
        assert "status=401" in text
