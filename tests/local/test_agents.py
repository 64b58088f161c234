"""Agents of the local Prefactor, and the tokens of an account and of deployments."""

from __future__ import annotations

from typing import Any

import pytest
from support.cases import case
from support.local_api import REGISTRATION, Api, calling, create, invalid, item, opened, refused

from prefactor_core import PrefactorValueError
from prefactor_core.local import Deployment, open_local_prefactor
from prefactor_core.operations.identifiers import generate, generate_related, is_pfid


async def put(api: Api, path: str, details: object) -> Any:
    return await api.http.put(path, json={"details": details})


async def test_an_agent_is_created_shown_and_changed(api: Api) -> None:
    details = {"name": "Searcher", "description": "d", "external_identifier": "s"}
    agent = await api.done("agent", {"details": details, "idempotency_key": "k"})
    assert await api.done("agent", {"details": details, "idempotency_key": "k"}) == agent
    assert {name: agent[name] for name in details} == details
    assert (agent["type"], agent["status"]) == ("agent", "pending")
    assert is_pfid(agent["id"])
    for answer in (
        await api.get(f"agent/{agent['id']}"),
        await api.get("agent/show", agent_id=agent["id"]),
        await api.get("agent/show", external_identifier="s"),
    ):
        assert answer.json()["details"] == agent
    changed = await put(api, f"agent/{agent['id']}", {"name": "Finder"})
    stored = (await api.get(f"agent/{agent['id']}")).json()["details"]
    assert changed.json()["details"] == stored
    assert stored == {**agent, "name": "Finder", "updated_at": stored["updated_at"]}
    listed = (await api.get("agent", sorting="-id")).json()["summaries"]
    assert listed == [stored]


async def test_what_cannot_be_an_agent_is_refused(api: Api) -> None:
    agent = await api.done("agent", {"details": {"name": "A", "external_identifier": "s"}})
    id = agent["id"]
    invalid(await api.post("agent", {"details": {}}), "name", "required")
    invalid(await api.post("agent", {"details": {"name": " "}}), "name", "required")
    taken = {"name": "B", "external_identifier": "s"}
    invalid(await api.post("agent", {"details": taken}), "external_identifier")
    refused(await api.post("agent", {"details": {"name": "B", "id": id}}), 409, "already_exists")
    invalid(await api.post("agent", {"details": {"name": "B", "id": generate(7)}}), "id")
    invalid(await put(api, f"agent/{id}", {"external_identifier": "t"}), "external_identifier")
    refused(await put(api, "agent/nobody", {}), 404, "not_found")
    refused(await api.get("agent/nobody"), 404, "not_found")
    refused(await api.get("agent/show", external_identifier="t"), 404, "not_found")
    invalid(await api.get("agent/show"), "agent_id", "required")
    both = {"agent_id": id, "external_identifier": "s"}
    invalid(await api.get("agent/show", **both), "agent_id", "required")
    given = generate_related(id)
    assert (await api.done("agent", {"details": {"name": "C", "id": given}}))["id"] == given


async def test_an_agent_that_registers_a_run_is_known_and_active(api: Api) -> None:
    await api.register()
    agent = (await api.get("agent/a1")).json()["details"]
    assert (agent["name"], agent["status"]) == ("a1", "active")
    assert (agent["instance_counts"]["total"], agent["instance_counts"]["pending"]) == (1, 1)


async def test_only_configured_and_created_agents_register_runs() -> None:
    async with opened(":memory:", agents=["a1"]) as api:
        assert (await api.get("agent/a1")).json()["details"]["status"] == "pending"
        agent = await api.done("agent", {"details": {"name": "A"}})
        await api.register(agent_id=agent["id"])
        unknown = {**REGISTRATION, "agent_id": "a2"}
        refused(await api.post("agent_instance/register", unknown), 404, "not_found")


async def test_a_retired_agent_takes_no_runs_until_it_is_reinstated(api: Api) -> None:
    await api.register()
    refused(await api.post("agent/a1/reinstate", {}), 409, "invalid_action")
    assert (await api.done("agent/a1/retire", {}))["status"] == "retired"
    refused(await api.post("agent/a1/retire", {}), 409, "invalid_action")
    answer = await api.post("agent_instance/register", REGISTRATION)
    refused(answer, 409, "invalid_action")
    reinstated = await api.done("agent/a1/reinstate", {})
    assert reinstated["status"] == "active"
    await api.register()


async def test_an_agent_says_what_can_be_done_with_it_and_counts_its_runs(api: Api) -> None:
    # The only form that the official client takes.
    await api.register()
    run = await api.start()
    await api.done(f"agent_instance/{run}/finish", {})
    agent = (await api.get("agent/a1")).json()["details"]
    actions = {"update": True, "retire": True, "reinstate": False, "delete": False}
    assert agent["available_actions"] == actions
    counts = {"pending": 1, "active": 0, "complete": 1, "failed": 0, "cancelled": 0}
    assert agent["instance_counts"] == {"total": 2, **counts, "terminated": 0, "finished": 1}
    retired = await api.done("agent/a1/retire", {})
    assert retired["available_actions"] == {**actions, "retire": False, "reinstate": True}


async def test_agents_in_bulk(api: Api) -> None:
    items = [
        item("agents/create", "create-1", details={"name": "A", "external_identifier": "s"}),
        item("agents/show", "show-0001", external_identifier="s"),
        item("agents/list", "list-0001"),
    ]
    outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
    agent = outputs["create-1"]["details"]
    assert outputs["show-0001"]["details"] == agent
    assert outputs["list-0001"]["summaries"] == [agent]
    items = [item("agents/update", "update-1", agent_id=agent["id"], details={"name": "B"})]
    outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
    assert outputs["update-1"]["details"]["name"] == "B"


# --- tokens

TOKENS = {
    "api_token": "of-account",
    "deployment_tokens": {
        "of-a1": Deployment(agent_id="a1", environment_id="staging"),
        "of-a2": Deployment(agent_id="a2"),
    },
}
ANONYMOUS = {name: part for name, part in REGISTRATION.items() if name != "agent_id"}


async def test_a_token_says_of_which_scope_it_is() -> None:
    for token, type in [
        ("of-account", "account"),
        ("of-a1", "agent_deployment"),
        ("of-a2", "agent_deployment"),
    ]:
        with case(token, type):
            async with open_local_prefactor(":memory:", **TOKENS) as app:
                async with calling(app, Authorization=f"Bearer {token}") as api:
                    assert (await api.get("ping")).json()["details"] == {"token_type": type}
                async with calling(app, Authorization=f"Bearer {token}x") as api:
                    refused(await api.get("ping"), 401, "bad_authtoken")


async def test_a_deployment_registers_runs_of_its_agent_in_its_environment() -> None:
    async with open_local_prefactor(":memory:", **TOKENS) as app:
        async with calling(app, Authorization="Bearer of-a1") as api:
            run = await api.done("agent_instance/register", ANONYMOUS)
            assert (run["agent_id"], run["environment_id"]) == ("a1", "staging")
            for change in ({"agent_id": "a2"}, {"environment_id": "live"}):
                answer = await api.post("agent_instance/register", {**ANONYMOUS, **change})
                invalid(answer, next(iter(change)))
            await api.register(environment_id="staging")
            items = [item("agent_instances/register", "register", **ANONYMOUS)]
            outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
            assert outputs["register"]["details"]["environment_id"] == "staging"
        async with calling(app, Authorization="Bearer of-a2") as api:
            run = await api.done("agent_instance/register", ANONYMOUS)
            assert (run["agent_id"], run["environment_id"]) == ("a2", run["account_id"])
        async with calling(app, Authorization="Bearer of-account") as api:
            answer = await api.post("agent_instance/register", ANONYMOUS)
            invalid(answer, "agent_id", "required")
            await api.register(agent_id="a3", environment_id="live")


async def test_a_deployment_records_and_does_not_read_or_manage() -> None:
    async with open_local_prefactor(":memory:", **TOKENS) as app:
        async with calling(app, Authorization="Bearer of-a1") as api:
            run = (await api.done("agent_instance/register", ANONYMOUS))["id"]
            await api.done(f"agent_instance/{run}/start", {})
            await api.created(run)
            for path in (
                f"agent_instance/{run}",
                "agent_instance?agent_id=a1",
                f"agent_spans?agent_instance_id={run}",
                "agent",
                "agent/a1",
                "agent/show?agent_id=a1",
            ):
                refused(await api.http.get(path), 401, "unauthorized")
            refused(await api.post("agent", {"details": {"name": "A"}}), 401, "unauthorized")
            refused(await api.post("agent/a1/retire", {}), 401, "unauthorized")
            for type in ("agent_instances/show", "agent_spans/list", "agents/list"):
                items = [create(run, f"before {type}"), item(type, f"read {type}")]
                outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
                assert outputs[f"before {type}"]["status"] == "success"
                assert outputs[f"read {type}"]["code"] == "unauthorized"
            await api.done(f"agent_instance/{run}/finish", {})


@pytest.mark.parametrize("token", ["of-a2", "of-a1-live"])
async def test_a_deployment_knows_the_runs_of_no_other(token: str) -> None:
    live = {"of-a1-live": Deployment(agent_id="a1", environment_id="live")}
    tokens = {**TOKENS, "deployment_tokens": {**TOKENS["deployment_tokens"], **live}}  # type: ignore[dict-item]
    async with open_local_prefactor(":memory:", **tokens) as app:
        async with calling(app, Authorization="Bearer of-a1") as api:
            run = (await api.done("agent_instance/register", ANONYMOUS))["id"]
            await api.done(f"agent_instance/{run}/start", {})
            span = (await api.created(run))["id"]
        async with calling(app, Authorization=f"Bearer {token}") as api:
            body = {"agent_instance_id": run, "schema_name": "x", "status": "active", "payload": {}}
            for path, content in {
                f"agent_instance/{run}/start": {},
                f"agent_instance/{run}/finish": {},
                f"agent_instance/{run}/terminate": {"reason": "no"},
                f"agent_instance/{run}/record_quality": {"name": "score", "payload": None},
                "agent_spans": {"details": body},
                f"agent_spans/{span}/finish": {},
            }.items():
                refused(await api.post(path, content), 404, "not_found")
            items = [create(run, "the span of another")]
            outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
            assert outputs["the span of another"]["code"] == "not_found"
        async with calling(app, Authorization="Bearer of-account") as api:
            await api.done(f"agent_spans/{span}/finish", {})
            await api.done(f"agent_instance/{run}/finish", {})


WRONG_OPTIONS = [
    ({"api_token": " "}, "every token must be a text, got an empty one"),
    ({"api_token": 5}, "every token must be a text, got an int"),
    ({"deployment_tokens": {"": Deployment(agent_id="a1")}}, "got an empty one"),
    ({"deployment_tokens": {"s3cret": "a1"}}, "must be a Deployment, got 'a1'"),
    ({"deployment_tokens": ["s3cret"]}, "must map tokens to deployments, got a list"),
    (
        {"api_token": "s3cret", "deployment_tokens": {"s3cret": Deployment(agent_id="a1")}},
        "api_token is one of deployment_tokens",
    ),
    ({"agents": "a1"}, "agents must be a collection of ids, got 'a1'"),
    ({"agents": [""]}, "agents must be a collection of ids"),
    ({"agents": [1]}, "agents must be a collection of ids"),
]


async def test_invalid_options_are_refused_without_showing_a_token() -> None:
    for options, message in WRONG_OPTIONS:
        with case(options, message):
            with pytest.raises(PrefactorValueError, match=message) as caught:
                async with open_local_prefactor(":memory:", **options):
                    pass
            assert not str(caught.value).startswith("cannot open")
            assert "s3cret" not in str(caught.value)


def test_a_deployment_needs_ids() -> None:
    for ids in [{"agent_id": ""}, {"agent_id": "a1", "environment_id": ""}]:
        with case(ids):
            with pytest.raises(PrefactorValueError, match="must be a text"):
                Deployment(**ids)


async def test_a_database_has_a_name() -> None:
    with pytest.raises(PrefactorValueError, match="path must be a file name"):
        async with open_local_prefactor(""):
            pass
