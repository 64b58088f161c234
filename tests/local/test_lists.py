"""Versions that runs register, and the pages of lists."""

from __future__ import annotations

from itertools import product

import pytest
from support.cases import case
from support.local_api import REGISTRATION, SCHEMA, VERSION, Api, invalid, refused


async def test_a_version_is_registered_once(api: Api) -> None:
    first = (await api.post("agent_instance/register", REGISTRATION)).json()
    again = (await api.post("agent_instance/register", REGISTRATION)).json()
    for part in ("agent_version", "agent_schema_version"):
        assert again[part] == first[part]
        assert again["details"][f"{part}_id"] == first[part]["id"]
    assert again["details"]["id"] != first["details"]["id"]


async def test_schemas_are_answered_by_name(api: Api) -> None:
    answer = (await api.post("agent_instance/register", REGISTRATION)).json()
    assert answer["agent_schema_version"]["span_type_schemas"] == {
        "agent:llm": {"name": "agent:llm", "params_schema": {"type": "object"}}
    }


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("agent_version", {**VERSION, "name": "Another"}),
        ("agent_schema_version", {**SCHEMA, "span_type_schemas": []}),
    ],
)
async def test_a_version_cannot_change_under_its_name(
    api: Api, field: str, changed: dict[str, object]
) -> None:
    await api.register()
    body = {**REGISTRATION, field: changed}
    answer = await api.post("agent_instance/register", body)
    invalid(answer, field)
    assert "already exists with different details" in answer.text
    await api.register(**{field: {**changed, "external_identifier": "v2"}})
    await api.register(**{field: changed}, agent_id="a2")
    assert len((await api.get("agent_instance", agent_id="a1")).json()["summaries"]) == 2


async def test_a_refused_registration_leaves_no_version_behind(api: Api) -> None:
    await api.register()
    first = {"name": "First", "external_identifier": "v2"}
    conflict = {**REGISTRATION, "agent_version": first, "agent_schema_version": {**SCHEMA, "n": 1}}
    invalid(await api.post("agent_instance/register", conflict), "agent_schema_version")
    await api.register(agent_version={**first, "name": "Second"})


async def test_the_order_of_keys_makes_no_other_version(api: Api) -> None:
    await api.register()
    await api.register(agent_version=dict(reversed(VERSION.items())))


# The fields of a page's pagination, in the order of the rows below.
PAGINATION = [
    "page_offset",
    "page_size",
    "item_start",
    "item_end",
    "previous_page_offset",
    "next_page_offset",
    "page_index",
    "page_count",
]


PAGES = [
    (0, 2, 1, 2, None, 2, 1, 3),
    (2, 2, 3, 4, 0, 4, 2, 3),
    (4, 2, 5, 5, 2, None, 3, 3),
    (0, 5, 1, 5, None, None, 1, 1),
    (0, 100, 1, 5, None, None, 1, 1),
]


async def test_a_list_comes_in_pages_that_say_where_they_stand(api: Api) -> None:
    for row in PAGES:
        with case(row):
            expected = dict(zip(PAGINATION, row, strict=True))
            instance_id = await api.start()
            spans = [await api.created(instance_id) for _ in range(5)]
            spans.sort(key=lambda span: str(span["id"]))
            query = {
                "agent_instance_id": instance_id,
                "pagination[offset]": str(expected["page_offset"]),
                "pagination[page_size]": str(expected["page_size"]),
            }
            page = (await api.get("agent_spans", **query)).json()
            assert page["status"] == "success"
            assert page["summaries"] == spans[expected["item_start"] - 1 : expected["item_end"]]
            assert page["pagination"] == {"item_count": 5, **expected}


SORTINGS = [
    ({}, "asc"),
    ({"sorting": "id"}, "asc"),
    ({"sorting": "-id"}, "desc"),
    ({"sorting[field]": "id"}, "asc"),
    ({"sorting[field]": "id", "sorting[direction]": "asc"}, "asc"),
    ({"sorting[field]": "id", "sorting[direction]": "desc"}, "desc"),
]


async def test_a_list_is_sorted_by_id_in_either_form(api: Api) -> None:
    ids = sorted([await api.register() for _ in range(3)])
    for query, direction in SORTINGS:
        with case(query):
            page = (await api.get("agent_instance", agent_id="a1", **query)).json()
            listed = [instance["id"] for instance in page["summaries"]]
            assert listed == (ids if direction == "asc" else ids[::-1])
            assert (page["sorting"]["field"], page["sorting"]["direction"]) == ("id", direction)


NO_PAGES = [
    {"pagination[offset]": "-1"},
    {"pagination[offset]": "first"},
    {"pagination[offset]": "9" * 5000},
    {"pagination[page_size]": "0"},
    {"pagination[page_size]": "101"},
    {"pagination[page_size]": ""},
    {"sorting": "name"},
    {"sorting[field]": "status"},
    {"sorting[direction]": "sideways"},
]


async def test_a_page_that_cannot_be_is_refused(api: Api) -> None:
    for query in NO_PAGES:
        with case(query):
            answer = await api.get("agent_instance", agent_id="a1", **query)
            refused(answer, 422, "validation_errors")


async def test_a_list_of_an_agent_without_runs_is_empty(api: Api) -> None:
    page = (await api.get("agent_instance", agent_id="a1")).json()
    assert page["summaries"] == []
    assert page["pagination"]["item_count"] == 0
    assert page["pagination"]["next_page_offset"] is None


# --- pages, compared with all rows


def at(second: int) -> str:
    return f"2026-01-01T12:00:{second:02}.000000Z"


@pytest.mark.parametrize("number", [0, 1, 3, 17])
async def test_the_pages_of_spans_are_parts_of_one_order_whatever_they_are_found_by(
    api: Api, number: int
) -> None:
    runs = [await api.start() for _ in range(2)]
    for second in range(number):
        # The ids are in another order than the times.
        await api.created(runs[second % 2], started_at=at(second * 7 % 10))
    spans = [span for run in runs for span in await api.spans(run)]
    owners = [("agent_id", "a1"), ("agent_instance_id", runs[0])]
    windows = list(product([None, 0, 3, 7], [None, 9, 6, 2]))
    for (owner, owner_id), (begin, end), direction in product(owners, windows, ["asc", "desc"]):
        query = {owner: owner_id, "sorting[direction]": direction, "pagination[page_size]": "4"}
        query |= {"start_time": at(begin)} if begin is not None else {}
        query |= {"end_time": at(end)} if end is not None else {}
        expected = sorted(
            span["id"]
            for span in spans
            if span[owner] == owner_id
            and query.get("start_time", "") <= span["started_at"] <= query.get("end_time", "9")
        )
        if direction == "desc":
            expected.reverse()
        for offset in range(0, number + 2, 5):
            with case(query, offset):
                query["pagination[offset]"] = str(offset)
                page = (await api.get("agent_spans", **query)).json()
                assert [span["id"] for span in page["summaries"]] == expected[offset : offset + 4]
                assert page["pagination"]["item_count"] == len(expected)
