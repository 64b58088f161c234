"""The fields that a class keeps out of its repr, for every kind of class."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from pydantic import v1
from support.cases import for_each

from prefactor_core.payloads.hidden_fields import hidden_fields


@dataclass
class Login:
    user: str
    password: str = field(default="", repr=False)


@dataclass
class AdminLogin(Login):
    otp: str = field(default="", repr=False)


class Plain(AdminLogin):
    """Not decorated itself."""


@attrs.define
class Key:
    name: str
    value: str = attrs.field(repr=False)
    other: str = attrs.field(repr=lambda value: "***")


@pydantic.dataclasses.dataclass
class Checked:
    user: str
    password: str = pydantic.Field(default="", repr=False)


class Model(pydantic.BaseModel):
    user: str
    password: Annotated[str, pydantic.Field(repr=False)]
    key: str = pydantic.Field("", repr=False, serialization_alias="apiKey")
    pin: str = pydantic.Field("", repr=False, alias="PIN")

    @pydantic.computed_field(repr=False)
    def login(self) -> str:
        return f"{self.user}:{self.password}"

    @pydantic.computed_field
    def initial(self) -> str:
        return self.user[:1]


class Derived(Model):
    more: str = ""


class Struct(msgspec.Struct):
    password: str


class Pair(NamedTuple):
    name: str
    password: str


class Pretender:
    __dataclass_fields__ = 1
    __fields__ = ("a",)


HIDDEN: list[tuple[type[Any], set[str]]] = [
    (Login, {"password"}),
    (AdminLogin, {"password", "otp"}),
    (Plain, {"password", "otp"}),
    (Key, {"value", "other"}),
    (Checked, {"password"}),
    (Model, {"password", "key", "apiKey", "pin", "PIN", "login"}),
    (Derived, {"password", "key", "apiKey", "pin", "PIN", "login"}),
    *(
        (cls, set())
        for cls in (Struct, Pair, Pretender, int, dict, object, type, pydantic.BaseModel)
    ),
]


@for_each(("cls", "hidden"), HIDDEN)
def test_fields_outside_of_the_repr_are_reported(cls: type, hidden: set[str]) -> None:
    assert hidden_fields(cls) == hidden


@pytest.mark.filterwarnings("ignore::UserWarning")  # version 1 says that this Python is too new
def test_models_of_the_first_pydantic_are_known_too() -> None:
    class Old(v1.BaseModel):
        user: str
        password: str = v1.Field("", repr=False)
        key: str = v1.Field("", repr=False, alias="apiKey")

    assert hidden_fields(Old) == {"password", "key", "apiKey"}


def test_classes_that_come_and_go_are_not_kept_for_ever() -> None:
    first = dataclass(type("Made", (), {}))
    hidden_fields(first)
    gone = weakref.ref(first)
    del first
    for _ in range(2_000):
        hidden_fields(type("Made", (), {}))
    gc.collect()
    assert gone() is None
