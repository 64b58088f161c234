"""The account, environments, deployments, versions, ids and empty lists of a local Prefactor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.cases import case
from support.local_api import REGISTRATION, SCHEMA, VERSION, Api, invalid, item, opened, refused
from support.old_files import downgrade

from prefactor_core.operations.identifiers import generate, generate_related, is_pfid, partition_of


async def put(api: Api, path: str, **details: object) -> Any:
    return await api.http.put(path, json={"details": details})


async def got(api: Api, path: str, **query: str) -> Any:
    answer = await api.get(path, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()["details"]


async def listed(api: Api, path: str, **query: str) -> list[Any]:
    answer = await api.get(path, **query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["summaries"])


# --- the account


async def test_the_account_is_listed_got_and_renamed(api: Api) -> None:
    (account,) = await listed(api, "account")
    assert (account["type"], account["name"]) == ("account", "Local")
    id = account["id"]
    assert await got(api, f"account/{id}") == account
    renamed = (await put(api, f"account/{id}", name="Mine")).json()["details"]
    assert renamed == {**account, "name": "Mine", "updated_at": renamed["updated_at"]}
    assert await listed(api, "account") == [renamed]
    assert (await put(api, f"account/{id}", name=None)).json()["details"]["name"] == "Mine"
    invalid(await put(api, f"account/{id}", name=" "), "name", "required")
    refused(await put(api, "account/another", name="x"), 404, "not_found")
    refused(await api.get("account/another"), 404, "not_found")


# --- environments


async def test_an_environment_is_created_renamed_and_deleted(api: Api) -> None:
    (default,) = await listed(api, "environment")
    account_id = default["account_id"]
    assert (default["id"], default["name"]) == (account_id, "default")
    details = {"name": "production", "account_id": account_id}
    created = await api.done("environment", {"details": details})
    assert (created["type"], created["name"]) == ("environment", "production")
    assert await listed(api, "environment", account_id=account_id) == [default, created]
    path = f"environment/{created['id']}"
    renamed = (await put(api, path, name="staging")).json()["details"]
    assert await got(api, path) == {**created, "name": "staging"} | {
        "updated_at": renamed["updated_at"]
    }
    assert (await put(api, path)).json()["details"]["name"] == "staging"
    deleted = await api.http.delete(path)
    assert deleted.json()["details"]["id"] == created["id"]
    refused(await api.get(path), 404, "not_found")


async def test_what_cannot_be_an_environment_is_refused(api: Api) -> None:
    invalid(await api.post("environment", {"details": {}}), "name", "required")
    invalid(await api.post("environment", {"details": {"name": " "}}), "name", "required")
    elsewhere = {"name": "x", "account_id": "another"}
    refused(await api.post("environment", {"details": elsewhere}), 404, "not_found")
    refused(await api.get("environment", account_id="another"), 404, "not_found")
    id = (await api.done("environment", {"details": {"name": "x"}}))["id"]
    taken = {"details": {"name": "y", "id": id}}
    refused(await api.post("environment", taken), 409, "already_exists")
    invalid(await api.post("environment", {"details": {"name": "y", "id": generate(7)}}), "id")
    invalid(await put(api, f"environment/{id}", name=""), "name", "required")


async def test_an_environment_that_is_in_use_is_not_deleted(api: Api) -> None:
    default = (await listed(api, "environment"))[0]["id"]
    refused(await api.http.delete(f"environment/{default}"), 409, "invalid_action")
    await api.register(environment_id="staging")
    refused(await api.http.delete("environment/staging"), 409, "invalid_action")
    (deployment,) = await listed(api, "agent_deployment", environment_id="staging")
    assert (await api.http.delete(f"agent_deployment/{deployment['id']}")).status_code == 200
    assert (await api.http.delete("environment/staging")).status_code == 200


async def test_environments_in_bulk(api: Api) -> None:
    items = [
        item("environments/create", "create-1", details={"name": "A"}),
        item("environments/list", "list-0001"),
    ]
    outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
    created = outputs["create-1"]["details"]
    assert outputs["list-0001"]["summaries"][-1] == created
    items = [
        item(
            "environments/update", "update-1", environment_id=created["id"], details={"name": "B"}
        ),
        item("environments/show", "show-0001", environment_id=created["id"]),
    ]
    outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
    assert outputs["show-0001"]["details"] == outputs["update-1"]["details"]
    assert outputs["show-0001"]["details"]["name"] == "B"


# --- deployments


async def test_a_run_makes_the_deployment_of_its_agent_in_its_environment(api: Api) -> None:
    first = await api.post("agent_instance/register", REGISTRATION)
    (deployment,) = await listed(api, "agent_deployment", agent_id="a1")
    run = first.json()["details"]
    assert is_pfid(deployment["id"])
    assert deployment["id"] == run["agent_deployment_id"]
    assert deployment["environment_id"] == run["environment_id"] == run["account_id"]
    assert deployment["current_version_id"] == run["agent_version_id"]
    await api.register(environment_id="staging")
    await api.register(agent_id="a2")
    assert len(await listed(api, "agent_deployment", agent_id="a1")) == 2
    assert len(await listed(api, "agent_deployment")) == 3
    staging = await got(api, "environment/staging")
    assert staging["name"] == "staging"


async def test_a_run_makes_its_version_the_current_one_unless_it_says_not(api: Api) -> None:
    async def current() -> object:
        (deployment,) = await listed(api, "agent_deployment", agent_id="a1")
        return deployment["current_version_id"]

    await api.register()
    first = await current()
    new = {"name": "An agent", "external_identifier": "v2"}
    await api.register(agent_version=new, update_current_version=False)
    assert await current() == first
    run = await api.register(agent_version=new, update_current_version=None)
    assert await current() == (await api.instance(run))["agent_version_id"] != first
    await api.register(update_current_version=True)
    assert await current() == first


async def test_a_deployment_is_created_changed_and_deleted(api: Api) -> None:
    agent = await api.done("agent", {"details": {"name": "A"}})
    environment = await api.done("environment", {"details": {"name": "production"}})
    details = {"agent_id": agent["id"], "environment_id": environment["id"]}
    deployment = await api.done("agent_deployment", {"details": details})
    assert deployment == {**deployment, **details, "current_version_id": None}
    refused(await api.post("agent_deployment", {"details": details}), 409, "already_exists")
    version = {"agent_id": agent["id"], "external_identifier": "v1"}
    version_id = (await api.done("agent_version", {"details": version}))["id"]
    path = f"agent_deployment/{deployment['id']}"
    changed = (await put(api, path, current_version_id=version_id)).json()["details"]
    assert changed["current_version_id"] == version_id
    assert (await put(api, path)).json()["details"]["current_version_id"] == version_id
    invalid(await put(api, path, current_version_id="another"), "current_version_id")
    assert (await put(api, path, current_version_id=None)).json()["details"][
        "current_version_id"
    ] is None
    assert (await api.http.delete(path)).status_code == 200
    refused(await api.get(path), 404, "not_found")
    refused(await put(api, path), 404, "not_found")
    refused(await api.http.delete(path), 404, "not_found")


async def test_a_deployment_needs_an_agent_and_an_environment(api: Api) -> None:
    agent = await api.done("agent", {"details": {"name": "A"}})
    for details in (
        {"agent_id": "nobody", "environment_id": agent["account_id"]},
        {"agent_id": agent["id"], "environment_id": "nowhere"},
    ):
        refused(await api.post("agent_deployment", {"details": details}), 404, "not_found")
    invalid(
        await api.post("agent_deployment", {"details": {"agent_id": agent["id"]}}),
        "environment_id",
        "required",
    )


async def test_a_deleted_deployment_comes_again_with_the_next_run(api: Api) -> None:
    run = await api.instance(await api.register())
    assert (await api.http.delete(f"agent_deployment/{run['agent_deployment_id']}")).is_success
    assert await api.instance(run["id"]) == run
    again = await api.instance(await api.register())
    assert again["agent_deployment_id"] != run["agent_deployment_id"]


async def test_the_runs_of_an_older_file_come_to_have_deployments(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    async with opened(str(path)) as api:
        for agent_id, environment_id in (
            ("a1", None),
            ("a1", None),
            ("a1", "staging"),
            ("a2", None),
        ):
            await api.register(agent_id=agent_id, environment_id=environment_id)
    downgrade(path, 4)
    async with opened(str(path)) as api:
        deployments = {each["id"]: each for each in await listed(api, "agent_deployment")}
        runs = [
            run
            for agent_id in ("a1", "a2")
            for run in await listed(api, "agent_instance", agent_id=agent_id)
        ]
        assert (len(deployments), len(runs)) == (3, 4)
        assert all(is_pfid(id) for id in deployments)
        account_id = runs[0]["account_id"]
        assert {partition_of(id) for id in deployments} == {partition_of(account_id)}
        for run in runs:
            deployment = deployments[run["agent_deployment_id"]]
            for name in ("agent_id", "environment_id"):
                assert deployment[name] == run[name]
            assert deployment["current_version_id"] == run["agent_version_id"]
        environments = {each["id"]: each["name"] for each in await listed(api, "environment")}
        assert environments == {account_id: "default", "staging": "staging"}
        assert (await listed(api, "account"))[0]["name"] == "Local"
        again = await api.instance(await api.register())
        assert again["agent_deployment_id"] in deployments


# --- deleting agents


async def test_an_agent_is_deleted_with_all_that_it_has_but_runs(api: Api) -> None:
    agent = await api.done("agent", {"details": {"name": "A"}})
    assert agent["available_actions"]["delete"]
    id = agent["id"]
    version = {"agent_id": id, "external_identifier": "v1"}
    await api.done("agent_version", {"details": version})
    deployment = {"agent_id": id, "environment_id": agent["account_id"]}
    await api.done("agent_deployment", {"details": deployment})
    token = {"token_scope": "agent_deployment", "agent_id": id}
    await api.done("api_token", {"details": token})
    deleted = await api.http.delete(f"agent/{id}")
    assert deleted.json()["details"] == agent
    refused(await api.get(f"agent/{id}"), 404, "not_found")
    refused(await api.http.delete(f"agent/{id}"), 404, "not_found")
    assert await listed(api, "agent_version", agent_id=id) == []
    assert await listed(api, "agent_deployment", agent_id=id) == []
    assert await listed(api, "api_token") == []


async def test_an_agent_that_has_runs_is_not_deleted(api: Api) -> None:
    run = await api.start()
    refused(await api.http.delete("agent/a1"), 409, "invalid_action")
    assert not (await got(api, "agent/a1"))["available_actions"]["delete"]
    assert (await api.instance(run))["status"] == "active"


# --- versions


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("agent_version", {**VERSION, "description": "d", "runtime_environment": {"os": "linux"}}),
        ("agent_schema_version", {**SCHEMA, "quality_schemas": [{"name": "score"}]}),
    ],
)
async def test_a_version_is_created_listed_and_taken_by_a_run(
    api: Api, kind: str, content: dict[str, Any]
) -> None:
    await api.done("agent", {"details": {"name": "Another"}})
    await api.register(agent_version={}, agent_schema_version={})
    version = await api.done(kind, {"details": {"agent_id": "a1", **content}})
    assert await api.done(kind, {"details": {"agent_id": "a1", **content}}) == version
    assert (version["type"], version["agent_id"]) == (kind, "a1")
    if kind == "agent_version":
        assert {name: version[name] for name in content} == content
    else:
        assert list(version["span_type_schemas"]) == ["agent:llm"]
    assert await got(api, f"{kind}/{version['id']}") == version
    assert version in await listed(api, kind, agent_id="a1")
    assert await listed(api, kind, agent_id="a2") == []
    run = await api.register(**{kind: content})
    assert (await api.instance(run))[f"{kind}_id"] == version["id"]
    changed = {"agent_id": "a1", "external_identifier": content["external_identifier"]}
    other = {"name": "Other"} if kind == "agent_version" else {"span_schemas": {}}
    invalid(await api.post(kind, {"details": {**changed, **other}}), kind)


async def test_a_version_is_of_an_agent_and_of_one_kind(api: Api) -> None:
    run = await api.instance(await api.register())
    for kind, other in (
        ("agent_version", "agent_schema_version"),
        ("agent_schema_version", "agent_version"),
    ):
        refused(await api.get(f"{kind}/{run[f'{other}_id']}"), 404, "not_found")
        refused(await api.get(f"{kind}/nothing"), 404, "not_found")
        refused(await api.post(kind, {"details": {"agent_id": "nobody"}}), 404, "not_found")
        invalid(await api.post(kind, {"details": {}}), "agent_id", "required")


# --- ids, empty lists


async def test_ids_of_the_account_are_made(api: Api) -> None:
    (account,) = await listed(api, "account")
    for body, count in (
        ({}, 1),
        ({"count": None}, 1),
        ({"count": 3}, 3),
        ({"count": 1000, "account_id": account["id"]}, 1000),
    ):
        answer = (await api.post("pfid/generate", body)).json()
        assert (answer["status"], answer["account_id"]) == ("success", account["id"])
        assert len(set(answer["pfids"])) == count
        assert {partition_of(id) for id in answer["pfids"]} == {partition_of(account["id"])}
    for count in (0, 1001, -1):
        invalid(await api.post("pfid/generate", {"count": count}), "count")
    refused(await api.post("pfid/generate", {"account_id": "another"}), 404, "not_found")


EMPTY = [
    "account_integration",
    "admin_user",
    "admin_user_invite",
    "alerts",
    "integration",
    "person",
    "risk_profile",
    "team",
]


async def test_clients_list_objects_that_this_server_does_not_have(api: Api) -> None:
    (account,) = await listed(api, "account")
    for kind in EMPTY:
        with case(kind):
            query = {"account_id": account["id"], "pagination[page_size]": "100"}
            page = (await api.get(kind, **query, sorting="-id")).json()
            assert (page["status"], page["summaries"]) == ("success", [])
            assert page["pagination"]["item_count"] == 0
            assert page["pagination"]["next_page_offset"] is None
            refused(await api.get(f"{kind}/one"), 404, "not_found")
    assert (await api.get("alerts/count")).json() == {"status": "success", "count": 0}


# --- context and sample spans


async def test_the_context_of_a_run_has_all_that_is_known_of_it(api: Api) -> None:
    run = await api.start()
    first = await api.created(run, status="complete", payload={"n": 1})
    second = await api.created(run, parent_span_id=first["id"])
    context = (await api.get(f"agent_instance/{run}/agent_context")).json()["agent_context"]
    body = context["body"]
    assert body["format"] == "agent_context_v1"
    assert body["agent_instance"] == await api.instance(run)
    assert [span["id"] for span in body["spans"]] == [first["id"], second["id"]]
    assert body["spans"][0]["payload"] == {"n": 1}
    assert body["agent_version"] == VERSION
    assert body["agent_schema_version"] == SCHEMA
    refused(await api.get("agent_instance/i0/agent_context"), 404, "not_found")


async def test_sample_spans_are_created(api: Api) -> None:
    run = await api.start()
    parent = await api.created(run)
    answer = await api.post("agent_spans/create_test_spans", {"agent_instance_id": run})
    assert len(answer.json()["summaries"]) == 5
    body = {"agent_instance_id": run, "count": 2, "parent_span_id": parent["id"]}
    spans = (await api.post("agent_spans/create_test_spans", body)).json()["summaries"]
    stored = {span["id"]: span for span in await api.spans(run)}
    assert len(stored) == 8
    for span in spans:
        assert stored[span["id"]] == span
        assert (span["status"], span["parent_span_id"]) == ("complete", parent["id"])
    for count in (0, 101):
        body = {"agent_instance_id": run, "count": count}
        invalid(await api.post("agent_spans/create_test_spans", body), "count")
    unknown = {"agent_instance_id": generate_related(run)}
    refused(await api.post("agent_spans/create_test_spans", unknown), 404, "not_found")
