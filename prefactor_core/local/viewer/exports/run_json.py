"""run_json: a run and its spans as the API shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw


def run_json(instance: Raw, spans: Iterable[Raw]) -> bytes:
    """``{"agent_instance": …, "agent_spans": […]}``, each as the JSON of the API."""
    return msgspec.json.encode({"agent_instance": instance, "agent_spans": list(spans)})
