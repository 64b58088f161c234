"""The calls of the vendor's open dashboard, as it makes them."""

from __future__ import annotations

from typing import Any

from compat.calls import Answer, Calls, Line

_PAGE = {
    "pagination[page_size]": "100",
    "pagination[offset]": "0",
    "sorting[field]": "id",
    "sorting[direction]": "desc",
}


_AGENT = "compat-dashboard"


def dashboard_lines(url: str) -> list[Line]:
    """Make every call against the API at ``url``, of a run stored before; a line for each."""
    calls = Calls(url, "open dashboard")
    _store_a_run(calls)

    def account_of(answer: Answer) -> str:
        details = answer.get("details") or answer["summaries"][0]
        return str(details["id"])

    def newest_first(answer: Answer) -> list[dict[str, Any]]:
        ids = [each["id"] for each in answer["summaries"]]
        assert ids
        assert ids == sorted(ids, reverse=True)
        assert "next_page_offset" in answer["pagination"]
        return list(answer["summaries"])

    def spans(answer: Answer) -> None:
        read = "status", "schema_name", "schema_title", "started_at", "finished_at", "payload"
        read += "parent_span_id", "agent_instance_id", "agent_id", "sensitive_encoding"
        for span in newest_first(answer):
            for name in read:
                assert name in span, name

    def quality(answer: Answer) -> None:
        details = answer["details"]
        for name in ("quality_payload", "quality_summary", "termination_reason", "purpose"):
            assert name in details, name

    account = calls.call("account", "GET", "account", reads=account_of)
    calls.call("agent", "GET", "agent", query=_PAGE, reads=newest_first)
    query = {**_PAGE, "agent_id": _AGENT}
    runs = calls.call("agent_instance", "GET", "agent_instance", query=query, reads=newest_first)
    run = runs[0]["id"] if runs else None
    calls.call("agent_instance/{id}", "GET", f"agent_instance/{run}", reads=quality)
    query["include_risk_level"] = "true"
    calls.call("agent_spans", "GET", "agent_spans", query=query, reads=spans)
    # It does without these two.
    calls.call("alerts/count", "GET", "alerts/count", refused=404)
    query = {"account_id": str(account)}
    calls.call("risk_profile", "GET", "risk_profile", query=query, refused=404)
    return calls.lines


def _store_a_run(calls: Calls) -> None:
    schemas = {"external_identifier": "1", "span_schemas": {"agent:run": {"type": "object"}}}
    run = calls.post(
        "agent_instance/register",
        {
            "agent_id": _AGENT,
            "agent_version": {"external_identifier": "1", "name": "Compat"},
            "agent_schema_version": schemas,
        },
    )["details"]["id"]
    span = {"agent_instance_id": run, "schema_name": "agent:run", "status": "active"}
    calls.post("agent_spans", {"details": {**span, "payload": {}}})
