"""Times: offsets, defaults, and an end before a start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

from support.cases import case
from support.local_api import NOON, ONE, Api, invalid

from prefactor_core.local.requests import stored_time

TIMES = [
    ("2026-01-01T12:00:00Z", NOON),
    ("2026-01-01T12:00:00.000Z", NOON),
    ("2026-01-01T14:30:00.5+02:30", "2026-01-01T12:00:00.500000Z"),
    ("2025-12-31T22:00:00-14:00", NOON),
    ("0999-01-01T00:00:00Z", "0999-01-01T00:00:00.000000Z"),
]


async def test_a_time_is_stored_in_utc_with_microseconds(api: Api) -> None:
    for given, stored in TIMES:
        with case(given, stored):
            instance_id = await api.register()
            started = await api.done(f"agent_instance/{instance_id}/start", {"timestamp": given})
            assert started["started_at"] == stored
            span = await api.created(
                instance_id, status="complete", started_at=given, finished_at=given
            )
            assert (span["started_at"], span["finished_at"]) == (stored, stored)


async def test_a_time_that_is_not_given_is_now(api: Api) -> None:
    before = datetime.now(UTC)
    instance_id = await api.register()
    started = await api.done(f"agent_instance/{instance_id}/start", {"timestamp": None})
    span = await api.created(instance_id, status="complete")
    finished = await api.done(f"agent_instance/{instance_id}/finish", {})
    stored = [started["started_at"], span["started_at"], span["finished_at"]]
    times = [before, *map(datetime.fromisoformat, stored)]
    times += [datetime.fromisoformat(finished["finished_at"]), datetime.now(UTC)]
    assert times == sorted(times)


NO_TIMES = [
    "2026-01-01T12:00:00",
    "2026-01-01T12:00:00.000000",
    "2026-01-01",
    "12:00:00Z",
    "yesterday",
    "",
    "0001-01-01T00:00:00+01:00",
    "9999-12-31T23:59:59-01:00",
]


async def test_a_time_without_offset_or_sense_is_refused(api: Api) -> None:
    for time in NO_TIMES:
        with case(time):
            pending, active = await api.register(), await api.start()
            span = await api.created(active)
            at = {"timestamp": time}
            invalid(await api.post(f"agent_instance/{pending}/start", at), "timestamp")
            invalid(await api.post(f"agent_instance/{active}/finish", at), "timestamp")
            invalid(await api.post(f"agent_spans/{span['id']}/finish", at), "timestamp")
            invalid(await api.create(active, started_at=time), "started_at")
            invalid(await api.create(active, status="failed", finished_at=time), "finished_at")
            assert (await api.instance(active))["status"] == "active"
            assert await api.spans(active) == [span]


async def test_nothing_ends_before_it_started(api: Api) -> None:
    # Also by the times of one client, whose clock was set back. Official clients end all telemetry
    # at an error.
    instance_id = await api.register()
    await api.done(f"agent_instance/{instance_id}/start", {"timestamp": ONE})
    span = await api.created(instance_id, started_at=ONE)
    early = {"timestamp": NOON}
    at_once = {"status": "complete", "started_at": ONE, "finished_at": NOON}
    for details in (
        await api.done(f"agent_spans/{span['id']}/finish", early),
        await api.created(instance_id, **at_once),
        await api.done(f"agent_instance/{instance_id}/finish", early),
    ):
        assert (details["started_at"], details["finished_at"]) == (ONE, ONE)
        assert details["flags"] == [f"finished_at: {NOON} is before the start, {ONE}"]


async def test_a_span_may_end_as_it_started(api: Api) -> None:
    instance_id = await api.start()
    span = await api.created(instance_id, started_at=ONE)
    finished = await api.done(f"agent_spans/{span['id']}/finish", {"timestamp": ONE})
    assert (finished["finished_at"], finished["flags"]) == (ONE, [])


# Times that clients give when their clock is off by an hour, and None: they give none.
CLOCKS = [-1, 1, None]


async def test_an_end_before_a_start_of_another_clock_is_that_start_and_flagged(api: Api) -> None:
    now = datetime.now(UTC)

    def given(name: str, hours: int | None) -> dict[str, str]:
        return {} if hours is None else {name: stored_time(now + timedelta(hours=hours))}

    for started, finished, call in product(CLOCKS, CLOCKS, ["run", "span", "span at once"]):
        with case(started, finished, call):
            instance_id = await api.register()
            if call == "run":
                path = f"agent_instance/{instance_id}"
                await api.done(f"{path}/start", given("timestamp", started))
                answer = await api.post(f"{path}/finish", given("timestamp", finished))
            elif call == "span":
                span = await api.created(instance_id, **given("started_at", started))
                finish = given("timestamp", finished)
                answer = await api.post(f"agent_spans/{span['id']}/finish", finish)
            else:
                times = {**given("started_at", started), **given("finished_at", finished)}
                answer = await api.create(instance_id, status="complete", **times)
            early = (finished or 0) < (started or 0)
            assert answer.status_code == 200, answer.text
            details = answer.json()["details"]
            start, end = details["started_at"], details["finished_at"]
            for name, time in (("started_at", started), ("finished_at", finished)):
                if time is not None and not early:
                    assert details[name] == given(name, time)[name]
            if early and (call, started) != ("span at once", None):
                assert start == end
                (flag,) = details["flags"]
                assert flag.startswith("finished_at: ")
                assert f"is before the start, {start}" in flag
            else:
                assert start <= end
                assert details["flags"] == []


async def test_the_flags_of_a_late_clock_and_of_the_schemas_stand_side_by_side(api: Api) -> None:
    types = [{"name": "agent:llm", "result_schema": {"required": ["response"]}}]
    schema = {"external_identifier": "s2", "span_type_schemas": types}
    instance_id = await api.register(agent_schema_version=schema)
    span = await api.created(instance_id)
    late = {"timestamp": NOON, "result_payload": {}}
    finished = await api.done(f"agent_spans/{span['id']}/finish", late)
    assert [flag.partition(":")[0] for flag in finished["flags"]] == ["finished_at", "result"]
