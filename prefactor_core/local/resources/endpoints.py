"""The endpoints of the resources."""

from __future__ import annotations

from typing import Any

from prefactor_core.local import answers
from prefactor_core.local.answers import Details, Summaries
from prefactor_core.local.endpoint import Endpoint, act, endpoint, kind, read, write
from prefactor_core.local.faults import Faults
from prefactor_core.local.resources.account import Account, UpdateAccountBody
from prefactor_core.local.resources.agent_versions import (
    AgentVersions,
    CreateSchemaVersionBody,
    CreateVersionBody,
)
from prefactor_core.local.resources.api_tokens import ApiTokens, CreateTokenBody
from prefactor_core.local.resources.deployments import (
    CreateDeploymentBody,
    Deployments,
    UpdateDeploymentBody,
)
from prefactor_core.local.resources.environments import (
    CreateEnvironmentBody,
    Environments,
    UpdateEnvironmentBody,
)
from prefactor_core.local.resources.ids import GenerateIdsBody, generate_ids
from prefactor_core.local.resources.nothing import (
    EMPTY_KINDS,
    count_alerts,
    get_nothing,
    list_nothing,
)
from prefactor_core.local.store import Store
from prefactor_core.local.versions import Versions


def resource_endpoints(store: Store, tokens: ApiTokens, faults: Faults) -> list[Endpoint]:
    """The endpoints of everything but agents and runs."""
    return [
        *_resources(store, tokens, faults),
        *_versions(store, faults),
        *_nothing(store),
    ]


def _resources(store: Store, tokens: ApiTokens, faults: Faults) -> list[Endpoint]:
    account, environments = Account(store, faults), Environments(store, faults)
    deployments = Deployments(store, faults)
    one_account, environment = Details[answers.Account], Details[answers.Environment]
    deployment, token = Details[answers.AgentDeployment], Details[answers.ApiToken]
    return [
        *kind(account, "account", "accounts", one_account, Summaries[answers.Account]),
        write(
            "PUT",
            "account/{id}",
            "Rename the account",
            one_account,
            UpdateAccountBody,
            account.update,
        ),
        *kind(
            environments,
            "environment",
            "environments",
            environment,
            Summaries[answers.Environment],
        ),
        write(
            "POST",
            "environment",
            "Create an environment",
            environment,
            CreateEnvironmentBody,
            lambda _, body: environments.create(body),
        ),
        write(
            "PUT",
            "environment/{id}",
            "Rename an environment",
            environment,
            UpdateEnvironmentBody,
            environments.update,
        ),
        act(
            "DELETE",
            "environment/{id}",
            "Delete an environment",
            environment,
            environments.delete,
        ),
        *kind(
            deployments,
            "agent_deployment",
            "deployments",
            deployment,
            Summaries[answers.AgentDeployment],
            ("agent_id", "environment_id"),
        ),
        write(
            "POST",
            "agent_deployment",
            "Deploy an agent in an environment",
            deployment,
            CreateDeploymentBody,
            lambda _, body: deployments.create(body),
        ),
        write(
            "PUT",
            "agent_deployment/{id}",
            "Change the current version of a deployment",
            deployment,
            UpdateDeploymentBody,
            deployments.update,
        ),
        act(
            "DELETE",
            "agent_deployment/{id}",
            "Delete a deployment",
            deployment,
            deployments.delete,
        ),
        *kind(tokens, "api_token", "API tokens", token, Summaries[answers.ApiToken]),
        write(
            "POST",
            "api_token",
            "Create an API token",
            answers.CreatedApiToken,
            CreateTokenBody,
            lambda _, body: tokens.create(body),
        ),
        act("DELETE", "api_token/{id}", "Delete an API token", token, tokens.delete),
        act("POST", "api_token/{id}/suspend", "Suspend an API token", token, tokens.suspend),
        act("POST", "api_token/{id}/activate", "Activate an API token", token, tokens.activate),
        act("POST", "api_token/{id}/revoke", "Revoke an API token", token, tokens.revoke),
        endpoint(
            "POST",
            "pfid/generate",
            "Make new ids",
            answers.Pfids,
            lambda call: generate_ids(store, call.body),
            body=GenerateIdsBody,
            scope="any",
        ),
    ]


def _versions(store: Store, faults: Faults) -> list[Endpoint]:
    stored = Versions(store)
    versions = AgentVersions("agent_version", store, stored, faults)
    schemas = AgentVersions("agent_schema_version", store, stored, faults)
    version, schema = Details[answers.AgentVersion], Details[answers.AgentSchemaVersion]
    query = ("agent_id",)
    return [
        *kind(
            versions,
            "agent_version",
            "versions of an agent",
            version,
            Summaries[answers.AgentVersion],
            query,
        ),
        write(
            "POST",
            "agent_version",
            "Create a version of an agent",
            version,
            CreateVersionBody,
            lambda _, body: versions.create(body),
        ),
        *kind(
            schemas,
            "agent_schema_version",
            "versions of the schemas of an agent",
            schema,
            Summaries[answers.AgentSchemaVersion],
            query,
        ),
        write(
            "POST",
            "agent_schema_version",
            "Create a version of the schemas of an agent",
            schema,
            CreateSchemaVersionBody,
            lambda _, body: schemas.create(body),
        ),
    ]


def _nothing(store: Store) -> list[Endpoint]:
    def get(name: str) -> Endpoint:
        answer = Details[dict[str, Any]]
        return read(f"{name}/{{id}}", "Not found", answer, lambda id, _: get_nothing(name, id))

    lists = [
        read(
            name,
            "An empty list",
            Summaries[dict[str, Any]],
            lambda _, query: list_nothing(store, query),
            ("account_id",),
        )
        for name in EMPTY_KINDS
    ]
    alerts = read("alerts/count", "Count the alerts", answers.Count, lambda _id, _: count_alerts())
    return [alerts, *lists, *map(get, EMPTY_KINDS)]
