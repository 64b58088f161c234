"""The arguments of a new run: no wrong value is accepted in silence, each error names its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from support.cases import case, for_each

from prefactor_core import PrefactorCoreClient, PrefactorValueError
from prefactor_core.client.run_arguments import RunOptions
from prefactor_core.testing import open_recording

VERSION = {"name": "Tested", "external_identifier": "v1"}
RIGHT: dict[str, Any] = {"agent_id": "tested-agent", "agent_version": VERSION}

# Values that are wrong for most arguments, as a misspelling, a mix-up or broken data gives them.
VALUES: list[Any] = [
    *(5, 2.5, True, "", " ", "\ud800", "rasie", b"raise", ["raise"], [], object()),
    *({"name": "\ud800"}, {"\ud800": 1}, {"name": {"en": ["\ud800"]}}, {"name": object()}),
]


TEXTS = {"agent_id", "environment_id", "external_identifier", "external_schema_version_id"}


@pytest.mark.parametrize("enabled", [True, False])
async def test_every_wrong_value_of_an_argument_is_an_error_that_names_it(enabled: bool) -> None:
    with open_recording() as recording:
        async with recording.open(enabled=enabled) as client:

            async def enter(**arguments: Any) -> None:
                async with client.agent_instance(**arguments):
                    pass

            async def make(**arguments: Any) -> None:
                await (await client.create_agent_instance(**arguments)).finish()

            async def make_at_once(**arguments: Any) -> None:
                client.create_agent_instance_nowait(**arguments).finish_nowait()

            for call, method in (
                (enter, PrefactorCoreClient.agent_instance),
                (make, PrefactorCoreClient.create_agent_instance),
                (make_at_once, PrefactorCoreClient.create_agent_instance_nowait),
            ):
                names = inspect.signature(inspect.unwrap(method)).parameters
                # Headers come from others: malformed ones are logged, in test_propagation.py.
                for name in {*names, *RunOptions.__annotations__} - {"self", "options", "parent"}:
                    for value in VALUES:
                        if name in TEXTS and value == "rasie":
                            continue  # may be one
                        with case(method.__name__, name, value):
                            with pytest.raises(PrefactorValueError, match=f"^{name}\\b") as info:
                                await call(**{**RIGHT, name: value})
                            if name in TEXTS and value == "\ud800":
                                assert "lone surrogate" in str(info.value)


@for_each(
    ("version", "problem"),
    [
        ({"name": "\ud800"}, "at ['name']: a lone surrogate in a text"),
        ({"\ud800": 1}, "a lone surrogate in a text"),
        ({"a": {"b": [1, {"c": "\ud800"}]}}, "at ['a']['b'][1]['c']: a lone surrogate in a text"),
        ({"a secret": "\ud800"}, "at [a text of length 8]: a lone surrogate in a text"),
    ],
)
def test_the_error_of_a_version_says_where_the_problem_is(version: Any, problem: str) -> None:
    for name in ("agent_version", "agent_schema_version"):
        with open_recording() as recording, recording.open_sync() as client:
            with pytest.raises(PrefactorValueError) as info:
                client.create_agent_instance(**{**RIGHT, name: version})
            assert str(info.value) == f"{name} cannot be written as JSON: {problem}"


class _RaisingMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no value")

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


@for_each(
    ("name", "version", "place"),
    [
        ("agent_version", _RaisingMapping(), ""),
        ("agent_version", {"a": [0, _RaisingMapping()]}, "at ['a'][1]: "),
        ("agent_schema_version", {"a": [0, _RaisingMapping()]}, "at ['a'][1]: "),
    ],
)
def test_an_error_of_a_mapping_of_the_caller_ends_the_search_for_the_place(
    name: str, version: Any, place: str
) -> None:
    with open_recording() as recording, recording.open_sync() as client:
        with pytest.raises(PrefactorValueError) as info:
            client.create_agent_instance(**{**RIGHT, name: version})
        assert str(info.value).startswith(f"{name} cannot be written as JSON: {place}Encoding")


def test_an_unknown_option_is_an_error_with_the_nearest_and_what_the_call_takes() -> None:
    with open_recording() as recording, recording.open_sync() as client:
        start = "there is no option 'external_identifer' of a run; the nearest is 'external_identif"
        with pytest.raises(PrefactorValueError, match=start):
            client.create_agent_instance(**RIGHT, external_identifer="x")  # type: ignore[call-overload]
        with pytest.raises(PrefactorValueError) as info:
            client.core.create_agent_instance_nowait(**RIGHT, instance_id="x")  # type: ignore[call-arg]
        assert str(info.value).count("instance_id") == 1
