"""Endpoint: one call of the API, with the forms of its request and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol, TypeVar, get_origin

from msgspec import Struct

from prefactor_core.local.answers import Summaries
from prefactor_core.local.requests import ActBody
from prefactor_core.local.tokens import Deployment

Body = TypeVar("Body", bound=Struct)
Method = Literal["GET", "POST", "PUT", "DELETE"]
Scope = Literal["account", "any", "open"]

_SORTED: Final = (
    "pagination[offset]",
    "pagination[page_size]",
    "sorting",
    "sorting[field]",
    "sorting[direction]",
)


class Call(Struct, frozen=True, kw_only=True):
    """One request: who makes it (None: the account), the id in its path or "", its query, and its
    body. ``by_sdk``: it names a package that records, as agents do and browsers do not."""

    caller: Deployment | None
    by_sdk: bool
    id: str
    query: Mapping[str, str]
    body: Any


class Endpoint(Struct, frozen=True, kw_only=True):
    """One method of one path below /api/v1/.

    ``scope``: ``account`` for a call that the token of a deployment may not make, ``open`` for one
    that needs no token. ``body`` is the form of the request, None for a call without one;
    ``answer`` that of a success. ``query``: the parameters that are looked at; those in
    ``required`` must be there.
    """

    method: Method
    path: str
    summary: str
    run: Callable[[Call], bytes]
    answer: Any
    body: type[Struct] | None = None
    query: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    scope: Scope = "account"


class Listed(Protocol):
    """Objects of one kind, which can be listed and got by id."""

    def list(self, query: Mapping[str, str]) -> bytes: ...

    def get(self, id: str) -> bytes: ...


def kind(
    objects: Listed,
    path: str,
    name: str,
    one: object,
    page: object,
    query: tuple[str, ...] = ("account_id",),
) -> list[Endpoint]:
    """The list of a kind of objects, whose plural is ``name``, and each of them."""
    return [
        read(path, f"List {name}", page, lambda _, query: objects.list(query), query),
        read(f"{path}/{{id}}", f"Get one of {name}", one, lambda id, _: objects.get(id)),
    ]


def read(
    path: str,
    summary: str,
    answer: object,
    run: Callable[[str, Mapping[str, str]], bytes],
    query: tuple[str, ...] = (),
    *,
    required: tuple[str, ...] = (),
) -> Endpoint:
    """A call that reads, with the token of the account. ``run`` takes the id in the path, or "",
    and the query."""
    if get_origin(answer) is Summaries:
        query = (*query, *_SORTED)
    return Endpoint(
        method="GET",
        path=path,
        summary=summary,
        run=lambda call: run(call.id, call.query),
        answer=answer,
        query=query,
        required=required,
    )


def write(
    method: Method,
    path: str,
    summary: str,
    answer: object,
    body: type[Body],
    run: Callable[[str, Body], bytes],
) -> Endpoint:
    """A call that writes, with the token of the account. ``run`` takes the id, likewise, and the
    body."""
    return endpoint(method, path, summary, answer, lambda call: run(call.id, call.body), body=body)


def act(
    method: Method, path: str, summary: str, answer: object, run: Callable[[str, ActBody], bytes]
) -> Endpoint:
    """A call that writes and needs no more than its path."""
    return write(method, path, summary, answer, ActBody, run)


def endpoint(
    method: Method,
    path: str,
    summary: str,
    answer: object,
    run: Callable[[Call], bytes],
    *,
    body: type[Struct],
    scope: Scope = "account",
) -> Endpoint:
    """Any call with a body."""
    return Endpoint(
        method=method,
        path=path,
        summary=summary,
        run=run,
        answer=answer,
        body=body,
        scope=scope,
    )
