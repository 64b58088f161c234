"""The commands of the vendor's ``@prefactor/cli`` that make a call, as it makes them.

The package is in no registry, so its calls are made here. Where its types and the service disagree
(lists, ``pfids``), the service's form counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.calls import Answer, Calls, Line

_NOBODY = "01m0000000w5p4z2000000000000000a"


def command_lines(url: str) -> list[Line]:
    """Make every call against the API at ``url``; a line for each command."""
    calls = Calls(url, "@prefactor/cli")
    calls.call("ping", "GET", "ping", reads=_success)
    account = _accounts(calls)
    environment = _environments(calls, account)
    agent = _agents(calls)
    version = _versions(calls, agent)
    _deployments(calls, agent, environment, version)
    _instances_and_spans(calls, agent)
    _tokens(calls, account, agent, environment)
    _others(calls, account)
    _deletions(calls, account)
    return calls.lines


def _success(answer: Answer) -> None:
    assert answer["status"] == "success"


def _id(answer: Answer) -> str:
    return str(answer["details"]["id"])


def _ids(answer: Answer) -> list[str]:
    return [each["id"] for each in answer["summaries"]]


def _has(**fields: Any) -> Any:
    """Reads the id of details that have these values."""

    def read(answer: Answer) -> str:
        details = answer["details"]
        assert {name: details[name] for name in fields} == fields
        return str(details["id"])

    return read


def _holds(id: str) -> Any:
    def read(answer: Answer) -> None:
        assert id in _ids(answer), f"no {id}"

    return read


def _details(**details: Any) -> Mapping[str, Any]:
    return {"details": details}


def _accounts(calls: Calls) -> str:
    account = calls.call("accounts list", "GET", "account", reads=lambda answer: _ids(answer)[0])
    path = f"account/{account}"
    calls.call("accounts retrieve", "GET", path, reads=_has(id=account))
    renamed = _details(name="Compat")
    calls.call("accounts update", "PUT", path, body=renamed, reads=_has(name="Compat"))
    return str(account)


def _environments(calls: Calls, account: str) -> str:
    body = _details(name="staging", account_id=account)
    reads = _has(name="staging", account_id=account)
    environment = calls.call("environments create", "POST", "environment", body=body, reads=reads)
    query = {"account_id": account}
    calls.call(
        "environments list", "GET", "environment", query=query, reads=_holds(str(environment))
    )
    path = f"environment/{environment}"
    calls.call("environments retrieve", "GET", path, reads=_has(id=environment))
    renamed = _details(name="testing")
    calls.call("environments update", "PUT", path, body=renamed, reads=_has(name="testing"))
    return str(environment)


def _agents(calls: Calls) -> str:
    body = _details(name="Guide", description="Knows mountains")
    agent = calls.call("agents create", "POST", "agent", body=body, reads=_has(name="Guide"))
    path = f"agent/{agent}"
    calls.call("agents list", "GET", "agent", reads=_holds(str(agent)))
    calls.call("agents retrieve", "GET", path, reads=_has(id=agent))
    renamed = _details(name="Mountain guide")
    calls.call("agents update", "PUT", path, body=renamed, reads=_has(name="Mountain guide"))
    calls.call("agents retire", "POST", f"{path}/retire", body={}, reads=_has(status="retired"))
    calls.call("agents reinstate", "POST", f"{path}/reinstate", body={}, reads=_id)
    return str(agent)


def _versions(calls: Calls, agent: str) -> str:
    query = {"agent_id": agent}
    body = _details(agent_id=agent, external_identifier="1")
    reads = _has(agent_id=agent, external_identifier="1")
    version = calls.call("agent_versions create", "POST", "agent_version", body=body, reads=reads)
    calls.call(
        "agent_versions list", "GET", "agent_version", query=query, reads=_holds(str(version))
    )
    path = f"agent_version/{version}"
    calls.call("agent_versions retrieve", "GET", path, reads=_has(id=version))

    body = _details(
        agent_id=agent, external_identifier="1", span_schemas={"agent:run": {"type": "object"}}
    )
    who, path = "agent_schema_versions", "agent_schema_version"
    schemas = calls.call(f"{who} create", "POST", path, body=body, reads=reads)
    calls.call(f"{who} list", "GET", path, query=query, reads=_holds(str(schemas)))
    calls.call(f"{who} retrieve", "GET", f"{path}/{schemas}", reads=_has(id=schemas))
    return str(version)


def _deployments(calls: Calls, agent: str, environment: str, version: str) -> None:
    who, path = "agent_deployments", "agent_deployment"
    body = _details(agent_id=agent, environment_id=environment)
    reads = _has(agent_id=agent, environment_id=environment, current_version_id=None)
    deployment = calls.call(f"{who} create", "POST", path, body=body, reads=reads)
    query = {"agent_id": agent}
    calls.call(f"{who} list", "GET", path, query=query, reads=_holds(str(deployment)))
    path = f"{path}/{deployment}"
    calls.call(f"{who} retrieve", "GET", path, reads=_has(id=deployment))
    current = {"current_version_id": version}
    calls.call(f"{who} update", "PUT", path, body=_details(**current), reads=_has(**current))
    calls.call(f"{who} delete", "DELETE", path)


def _instances_and_spans(calls: Calls, agent: str) -> None:
    who, path = "agent_instances", "agent_instance"
    body = {
        "agent_id": agent,
        "agent_version": {"external_identifier": "2", "name": "Guide"},
        "agent_schema_version": {
            "external_identifier": "2",
            "span_schemas": {"agent:run": {"type": "object"}},
        },
        "update_current_version": True,
        "idempotency_key": "key-of-register",
    }
    run = calls.call(f"{who} register", "POST", f"{path}/register", body=body, reads=_id)
    query = {"agent_id": agent}
    calls.call(f"{who} list", "GET", path, query=query, reads=_holds(str(run)))
    run_path = f"{path}/{run}"
    key = {"idempotency_key": "key-of-start"}
    calls.call(f"{who} start", "POST", f"{run_path}/start", body=key, reads=_has(status="active"))

    who, path = "agent_spans", "agent_spans"
    details = {"agent_instance_id": run, "schema_name": "agent:run", "status": "active"}
    body = _details(**details, payload={"question": "How high is K2?"})
    span = calls.call(f"{who} create", "POST", path, body=body, reads=_has(**details))
    body = {"status": "complete", "result_payload": {"answer": "8611 m"}}
    calls.call(
        f"{who} finish", "POST", f"{path}/{span}/finish", body=body, reads=_has(status="complete")
    )
    body = {"agent_instance_id": run, "count": 3, "parent_span_id": span}
    calls.call(f"{who} create_test_spans", "POST", f"{path}/create_test_spans", body=body)

    def four_with_summaries(answer: Answer) -> None:
        assert len(answer["summaries"]) == 4
        assert all("summary" in each for each in answer["summaries"])

    times = {"start_time": "2020-01-01T00:00:00Z", "end_time": "2100-01-01T00:00:00Z"}
    query = {"agent_instance_id": str(run), **times, "include_summaries": "true"}
    calls.call(f"{who} list", "GET", path, query=query, reads=four_with_summaries)

    who = "agent_instances"
    calls.call(
        f"{who} agent_context",
        "GET",
        f"{run_path}/agent_context",
        reads=lambda answer: answer["agent_context"]["body"],
    )
    body = {"status": "complete", "idempotency_key": "key-of-finish"}
    calls.call(
        f"{who} finish", "POST", f"{run_path}/finish", body=body, reads=_has(status="complete")
    )
    calls.call(f"{who} retrieve", "GET", run_path, reads=_has(id=run, status="complete"))


def _tokens(calls: Calls, account: str, agent: str, environment: str) -> None:
    def with_secret(answer: Answer) -> str:
        assert answer["token"]
        return _id(answer)

    who, path = "api_tokens", "api_token"
    details = {"agent_id": agent, "environment_id": environment, "account_id": account}
    body = _details(token_scope="agent_deployment", **details)
    token = calls.call(f"{who} create", "POST", path, body=body, reads=with_secret)
    query = {"account_id": account}
    calls.call(f"{who} list", "GET", path, query=query, reads=_holds(str(token)))
    path = f"{path}/{token}"
    calls.call(f"{who} retrieve", "GET", path, reads=_has(id=token, status="active"))
    for verb, status in (("suspend", "suspended"), ("activate", "active"), ("revoke", "revoked")):
        reads = _has(status=status)
        calls.call(f"{who} {verb}", "POST", f"{path}/{verb}", body={}, reads=reads)
    calls.call(f"{who} delete", "DELETE", path)


def _deletions(calls: Calls, account: str) -> None:
    # Those above have deployments and runs, and stay.
    environment = _id(calls.post("environment", _details(name="scratch", account_id=account)))
    calls.call("environments delete", "DELETE", f"environment/{environment}")
    agent = _id(calls.post("agent", _details(name="Scratch")))
    calls.call("agents delete", "DELETE", f"agent/{agent}")


def _others(calls: Calls, account: str) -> None:
    def two(answer: Answer) -> None:
        assert len(answer["pfids"]) == 2

    body: Mapping[str, Any] = {"count": 2, "account_id": account}
    calls.call("pfid generate", "POST", "pfid/generate", body=body, reads=two)

    # The command sends what the user wrote: here, an item as the service takes it.
    item = {"_type": "agents/list", "idempotency_key": "key-of-list"}
    body = {"items": [{"method": "GET", "path": "/agent", **item}]}

    def listed(answer: Answer) -> None:
        assert answer["outputs"]["key-of-list"]["status"] == "success"

    calls.call("bulk execute", "POST", "bulk", body=body, reads=listed)

    # A file on this machine has no users: an empty list, and an error that says so.
    query = {"account_id": account}
    for who, path in (("admin_users", "admin_user"), ("admin_user_invites", "admin_user_invite")):
        calls.call(f"{who} list", "GET", path, query=query, reads=_ids)
        calls.call(f"{who} retrieve", "GET", f"{path}/{_NOBODY}", refused=404)
