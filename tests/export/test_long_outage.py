"""An outage of a day: a journal keeps everything, and delivers it in order, each once."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from support.harness import AGENT, FaultyApi, make_config, open_faulty_api, stored_run

from prefactor_core import open_prefactor

pytestmark = pytest.mark.virtual_time

HOURS = 24
SPANS = 2_880
LONGEST_WAIT = 600.0
"""Seconds between two attempts. Each has its price: this time is not waited for."""


def created(api: FaultyApi) -> list[int]:
    """The numbers of the spans whose create the API has accepted, in order."""
    return [
        call.body["details"]["payload"]["n"]
        for call in api.operations
        if call.name == "agent_spans" and call.status == 200
    ]


async def test_all_spans_of_a_day_without_the_api_arrive_in_order_each_once(
    tmp_path: Path,
) -> None:
    with anyio.fail_after((HOURS + 10) * 3600):
        async with open_faulty_api() as api:
            config = make_config(
                journal=tmp_path / "journal", http={"max_retry_delay": LONGEST_WAIT}
            )
            async with open_prefactor(config, asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    api.away = True
                    for n in range(SPANS):
                        if n % (SPANS // HOURS) == 0:
                            await anyio.sleep(3600)
                        async with instance.span("agent:tool", payload={"n": n}) as span:
                            span.set_result({"n": n})
                    assert client.statistics().pending == SPANS + 1
                    api.away = False
                    await client.flush()
            statistics = client.statistics()
            run = await stored_run(api)
    assert (statistics.lost, statistics.pending) == (0, 0)
    assert statistics.accepted == statistics.delivered
    assert created(api) == list(range(SPANS))
    assert [span.result["n"] for span in run.spans.values()] == list(range(SPANS))
    assert (run.status, {span.status for span in run.spans.values()}) == ("complete", {"complete"})
    assert list((tmp_path / "journal").iterdir()) == []
