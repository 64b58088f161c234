"""Runs that could not be registered in time, and APIs that make all ids themselves."""

from __future__ import annotations

import anyio
import pytest
from support.harness import AGENT, FaultyApi, make_config, stored_run, stored_runs

from prefactor_core import PrefactorValidationError, open_prefactor
from prefactor_core.local import Faults, open_local_prefactor
from prefactor_core.operations.identifiers import generate, partition_of

pytestmark = pytest.mark.virtual_time

TREE = ("complete", [("agent:run", "complete", [("agent:tool", "complete", [])])])


async def test_a_run_goes_on_while_the_api_is_away_and_is_registered_when_it_is_back() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        config = make_config(registration_timeout=1.0, drain_timeout=120)
        async with open_prefactor(config, asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                provisional = instance.id
                async with instance.span("agent:run", payload={"n": 1}) as outer:
                    outer_id = outer.id
                    assert partition_of(outer_id) == partition_of(provisional) == 0
                    async with instance.span("agent:tool") as inner:
                        await inner.start()
                    api.away = False
                    await client.flush()
                    # Final as soon as it is known, for spans that are open too.
                    assert instance.id != provisional
                    assert partition_of(instance.id) != 0
                    assert partition_of(outer.id) == partition_of(instance.id)
                    assert outer.id[16:] == outer_id[16:]
        run = await stored_run(app)
        assert run.shape == TREE
        assert run.id == instance.id
        assert {outer.id, inner.id} == set(run.spans)
        assert app.refusals == {}
    assert client.statistics().lost == 0


async def test_both_ids_of_a_run_and_of_its_spans_can_be_used_by_hand() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        config = make_config(registration_timeout=1.0, drain_timeout=120)
        async with open_prefactor(config, asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            provisional = instance.id
            outer = await client.create_span(provisional, "agent:run")
            api.away = False
            await client.flush()
            inner = await client.create_span(instance.id, "agent:tool")
            below = client.span(instance.id, "agent:llm", parent_span_id=outer)
            async with below:
                pass
            await client.finish_span(inner)
            (final_outer,) = [
                span.id for span in (await stored_run(app)).spans.values() if not span.parent_id
            ]
            assert final_outer != outer
            assert client.span_manager.get_span(final_outer).schema_name == "agent:run"
            await client.finish_span(final_outer)
            assert client.instance_manager.get(provisional).id == instance.id
            await instance.finish()
        run = await stored_run(app)
    assert client.statistics().lost == 0
    (root,) = run.roots
    assert {child.name for child in root.children} == {"agent:tool", "agent:llm"}


async def test_nothing_of_a_run_overtakes_its_registration_even_in_the_drain() -> None:
    async with open_local_prefactor(":memory:") as app:
        # All else is answered all the time: that no run is called so, if it is sent.
        api = FaultyApi(app, faults={"register": 503})
        config = make_config(registration_timeout=1.0, drain_timeout=120)
        async with anyio.create_task_group() as tasks:
            async with open_prefactor(config, asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run"):
                        async with instance.span("agent:tool"):
                            pass

                async def recover() -> None:
                    await anyio.sleep(100)
                    api.faults.clear()

                tasks.start_soon(recover)
        assert {call.name for call in api.operations if call.time < 100} == {"register"}
        assert (await stored_run(app)).shape == TREE
        assert app.refusals == {}
    assert client.statistics().lost == 0


async def test_after_an_outage_runs_are_registered_at_once_again() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        config = make_config(registration_timeout=1.0, drain_timeout=120)
        async with open_prefactor(config, asgi_app=api) as client:
            await client.create_agent_instance(**AGENT)
            api.away = False
            await client.flush()
            instance = await client.create_agent_instance(**AGENT)
            assert instance.id in [run.id for run in await stored_runs(app)]


async def test_a_run_that_begins_in_an_outage_known_from_spans_does_not_wait() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app)
        async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as first:
                api.away = True
                async with first.span("agent:run"):
                    pass
                await anyio.sleep(60)
                before = anyio.current_time()
                second = await client.create_agent_instance(**AGENT)
                assert anyio.current_time() == before
                # All runs of an account are of one partition.
                assert partition_of(second.id) == partition_of(first.id)
                api.away = False
    assert client.statistics().lost == 0


async def test_a_provisional_id_is_of_the_partition_of_an_agent_that_has_one() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        config = make_config(registration_timeout=1.0, drain_timeout=120)
        async with open_prefactor(config, asgi_app=api) as client:
            agent = {**AGENT, "agent_id": generate(7)}
            instance = await client.create_agent_instance(**agent)
            assert partition_of(instance.id) == 7
            api.away = False
    assert client.statistics().lost == 0


async def test_open_spans_of_a_run_that_was_provisional_end_before_it() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        config = make_config(registration_timeout=1.0, drain_timeout=120)
        async with open_prefactor(config, asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            await instance.create_span("agent:run")
            api.away = False
            await client.flush()
            assert client.instance_manager.get(instance.id).id == instance.id
            await instance.finish()
        assert (await stored_run(app)).shape == ("complete", [("agent:run", "cancelled", [])])
        assert api.operations[-1].path.endswith(f"agent_instance/{instance.id}/finish")
        assert app.refusals == {}
    assert client.statistics().lost == 0


@pytest.mark.parametrize("max_retries", [0, 2])
async def test_registering_is_tried_as_often_as_the_configuration_says(max_retries: int) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        http: dict[str, object] = {"max_retries": max_retries}
        config = make_config(registration_timeout=60, drain_timeout=0, http=http)
        async with open_prefactor(config, asgi_app=api) as client:
            before = anyio.current_time()
            await client.create_agent_instance(**AGENT)
            assert len(api.calls) == 1 + max_retries
            # The waits are about a tenth of retry_delay_base, and twice as long each time.
            assert anyio.current_time() - before <= (0.75 if max_retries else 0)


async def test_an_answer_to_a_registration_that_was_lost_leads_to_one_run() -> None:
    async with open_local_prefactor(":memory:", faults=Faults(answering_time=5.0)) as app:
        config = make_config(registration_timeout=1.0, drain_timeout=120)
        async with open_prefactor(config, asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    async with instance.span("agent:tool"):
                        pass
        app.faults.answering_time = 0.0
        assert (await stored_run(app)).shape == TREE
    assert client.statistics().lost == 0


async def test_many_runs_that_begin_in_an_outage_arrive_each_in_its_order() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        config = make_config(registration_timeout=1.0, drain_timeout=600)
        before = anyio.current_time()
        async with open_prefactor(config, asgi_app=api) as client:
            for _ in range(20):
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run"):
                        async with instance.span("agent:tool"):
                            pass
            assert anyio.current_time() - before <= 1.5
            await anyio.sleep(100)
            api.away = False
        assert [run.shape for run in await stored_runs(app)] == [TREE] * 20
        assert app.refusals == {}
    assert client.statistics().lost == 0


async def test_a_run_that_is_refused_later_is_given_up_with_all_that_belongs_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_local_prefactor(":memory:", agents=["tested-agent"]) as app:
        api = FaultyApi(app, away=True)
        config = make_config(registration_timeout=1.0, drain_timeout=600)
        async with open_prefactor(config, asgi_app=api) as client:
            unknown = {**AGENT, "agent_id": "nobody"}
            async with client.agent_instance(**unknown) as instance:
                async with instance.span("agent:run"):
                    pass
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    async with instance.span("agent:tool"):
                        pass
            api.away = False
        assert (await stored_run(app)).shape == TREE
    assert client.statistics().dropped == {"refused": 4}
    assert sum("is given up" in r.getMessage() for r in caplog.records) == 1


async def test_a_refused_registration_raises_at_once() -> None:
    async with open_local_prefactor(":memory:") as app:
        async with open_prefactor(make_config(), asgi_app=app) as client:
            with pytest.raises(PrefactorValidationError, match="partition"):
                await client.create_agent_instance(**AGENT, instance_id="0" * 32)
    assert client.statistics().accepted == 0


async def test_an_api_that_refuses_given_ids_makes_them_itself_and_the_tree_is_right() -> None:
    async with open_local_prefactor(":memory:", faults=Faults(given_ids=False)) as app:
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=app) as client:
            for _ in range(2):
                async with client.agent_instance(**AGENT) as instance:
                    ours: dict[str, str] = {}
                    async with instance.span("agent:run") as outer:
                        await outer.start()
                        for _ in range(20):
                            async with instance.span("agent:tool") as inner:
                                await inner.start()
                                async with instance.span("agent:llm") as deep:
                                    ours[deep.id] = inner.id
                        await client.flush()
                        known = outer.id
                    await client.flush()
                    assert outer.id == known
                assert known in (await stored_runs(app))[-1].spans
        runs = await stored_runs(app)
        # Once: from then on none is given.
        assert app.refusals["validation_errors"] <= 2
    tool = ("agent:tool", "complete", [("agent:llm", "complete", [])])
    shape = ("complete", [("agent:run", "complete", [tool] * 20)])
    assert [run.shape for run in runs] == [shape] * 2
    assert client.statistics().lost == 0


async def test_an_api_that_makes_ids_itself_does_not_lose_one_when_an_answer_is_lost() -> None:
    faults = Faults(given_ids=False, drop_rate=0.3, seed=3)
    async with open_local_prefactor(":memory:", faults=faults) as app:
        config = make_config(drain_timeout=3600, queue={"max_batch_operations": 4})
        async with open_prefactor(config, asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                for _ in range(10):
                    async with instance.span("agent:run") as outer:
                        await outer.start()
                        async with instance.span("agent:tool"):
                            pass
        faults.drop_rate = 0.0
        app.faults.drop_rate = 0.0
        step = ("agent:run", "complete", [("agent:tool", "complete", [])])
        assert (await stored_run(app)).shape == ("complete", [step] * 10)
    assert client.statistics().lost == 0
