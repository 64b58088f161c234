"""The endpoints of the API: a table of every call. The router and the OpenAPI document come from
it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from prefactor_core.local import answers
from prefactor_core.local.agents import Agents
from prefactor_core.local.answers import Details, Summaries
from prefactor_core.local.endpoint import Call, Endpoint, act, endpoint, read, write
from prefactor_core.local.faults import Faults
from prefactor_core.local.requests import (
    CreateAgentBody,
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    RecordQualityBody,
    RegisterBody,
    StartBody,
    TerminateBody,
    UpdateAgentBody,
    UpdateInstanceBody,
)
from prefactor_core.local.resources.api_tokens import ApiTokens
from prefactor_core.local.resources.endpoints import resource_endpoints
from prefactor_core.local.sample_spans import CreateTestSpansBody, create_test_spans
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store

Body = TypeVar("Body", bound=Struct)


def endpoints(
    store: Store, service: Service, agents: Agents, tokens: ApiTokens, faults: Faults
) -> list[Endpoint]:
    """Every endpoint over ``store``, but for ping, bulk and openapi, which are the application's.
    The most frequent ones come first."""
    return [
        *_runs(service),
        *_agents(agents),
        *resource_endpoints(store, tokens, faults),
    ]


def _runs(service: Service) -> list[Endpoint]:
    one_run, span = Details[answers.AgentInstance], Details[answers.AgentSpan]

    def record(
        path: str,
        summary: str,
        answer: object,
        body: type[Body],
        call: Callable[[Service, str, Body], bytes],
    ) -> Endpoint:
        """A call of recorders, which may have any token."""

        def run(request: Call) -> bytes:
            return call(service.acting_for(request.caller), request.id, request.body)

        return endpoint("POST", path, summary, answer, run, body=body, scope="any")

    return [
        record(
            "agent_spans",
            "Create a span",
            span,
            CreateSpanBody,
            lambda service, _, body: service.create_span(body),
        ),
        record(
            "agent_spans/create_test_spans",
            "Create sample spans",
            Summaries[answers.AgentSpan],
            CreateTestSpansBody,
            lambda service, _, body: create_test_spans(service, body),
        ),
        record(
            "agent_spans/{id}/finish", "Finish a span", span, FinishSpanBody, Service.finish_span
        ),
        record(
            "agent_instance/register",
            "Register a run",
            answers.Registered,
            RegisterBody,
            lambda service, _, body: service.register(body),
        ),
        record("agent_instance/{id}/start", "Start a run", one_run, StartBody, Service.start),
        record(
            "agent_instance/{id}/finish",
            "Finish a run",
            one_run,
            FinishInstanceBody,
            Service.finish_instance,
        ),
        record(
            "agent_instance/{id}/terminate",
            "Terminate a run",
            one_run,
            TerminateBody,
            Service.terminate,
        ),
        record(
            "agent_instance/{id}/record_quality",
            "Record a quality payload of a run",
            one_run,
            RecordQualityBody,
            Service.record_quality,
        ),
        read(
            "agent_spans",
            "List the spans of a run or an agent",
            Summaries[answers.AgentSpan],
            lambda _, query: service.list_spans(query),
            ("agent_instance_id", "agent_id", "start_time", "end_time", "include_summaries"),
        ),
        read(
            "agent_instance",
            "List the runs of an agent",
            Summaries[answers.AgentInstance],
            lambda _, query: service.list_instances(query),
            ("agent_id", "agent_version_id"),
            required=("agent_id",),
        ),
        Endpoint(
            method="GET",
            path="agent_instance/{id}",
            summary="Get a run",
            run=lambda call: service.get_instance(call.id, by_agent=call.by_sdk),
            answer=one_run,
        ),
        write(
            "PUT",
            "agent_instance/{id}",
            "Replace the quality payload of a run",
            one_run,
            UpdateInstanceBody,
            service.update_instance,
        ),
        read(
            "agent_instance/{id}/agent_context",
            "Get a run with its versions and spans",
            answers.AgentContext,
            lambda id, _: service.agent_context(id),
        ),
    ]


def _agents(agents: Agents) -> list[Endpoint]:
    agent = Details[answers.Agent]
    return [
        read(
            "agent",
            "List agents",
            Summaries[answers.Agent],
            lambda _, query: agents.list(query),
            ("risk_profile_id", "team_id", "owner_person_id"),
        ),
        write(
            "POST",
            "agent",
            "Create an agent",
            agent,
            CreateAgentBody,
            lambda _, body: agents.create(body),
        ),
        read(
            "agent/show",
            "Get an agent by one of its ids",
            agent,
            lambda _, query: agents.show(query),
            ("agent_id", "external_identifier"),
        ),
        read("agent/{id}", "Get an agent", agent, lambda id, _: agents.get(id)),
        write("PUT", "agent/{id}", "Change an agent", agent, UpdateAgentBody, agents.update),
        act("DELETE", "agent/{id}", "Delete an agent without runs", agent, agents.delete),
        act("POST", "agent/{id}/retire", "Retire an agent", agent, agents.retire),
        act("POST", "agent/{id}/reinstate", "Reinstate an agent", agent, agents.reinstate),
    ]
