"""The test kit with the plugins for asynchronous tests: ``just test-plugins``."""

from __future__ import annotations

import pytest

AGENT = """
import pytest

from prefactor_core import open_prefactor, traced

@traced("agent:tool")
async def search(query):
    return query

@pytest.fixture
def checked(prefactor):
    yield
    # After the client was closed.
    assert prefactor.run.outline == "complete\\nagent:run complete\\n  agent:tool complete"
"""

TESTS = """
@{fixture}
async def client(prefactor, checked):
    async with prefactor.open() as client:
        yield client

@{fixture}
async def instance(client):
    instance = await client.create_agent_instance("tested-agent", {{"name": "Tested agent"}})
    await instance.start()
    yield instance
    await instance.finish()

{mark}
async def test_a_client_of_a_fixture(prefactor, client, instance):
    async with instance.span("agent:run"):
        await search("x")
    await client.flush()
    assert prefactor.run.outline == "active\\nagent:run complete\\n  agent:tool complete"

{mark}
async def test_a_client_of_the_test(prefactor, checked):
    async with prefactor.open() as client:
        async with client.agent_instance("tested-agent", {{"name": "Tested agent"}}) as instance:
            async with instance.span("agent:run"):
                await search("x")

@{fixture}
async def captured(prefactor, checked):
    with prefactor.capture():
        client = open_prefactor()
        await client.initialize()
        yield client
        await client.close()

{mark}
async def test_a_client_of_the_application(captured):
    instance = await captured.create_agent_instance("tested-agent", {{"name": "Tested agent"}})
    async with instance.span("agent:run"):
        await search("x")
    await instance.finish()
"""

PLUGINS = {
    "pytest-asyncio, strict": (
        "asyncio_mode = strict\nasyncio_default_fixture_loop_scope = function",
        "import pytest_asyncio",
        {"fixture": "pytest_asyncio.fixture", "mark": "@pytest.mark.asyncio"},
    ),
    "pytest-asyncio, auto": (
        "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function",
        "",
        {"fixture": "pytest.fixture", "mark": ""},
    ),
    "pytest-asyncio, one loop for all": (
        """
asyncio_mode = auto
asyncio_default_fixture_loop_scope = session
asyncio_default_test_loop_scope = session
""",
        "",
        {"fixture": "pytest.fixture", "mark": ""},
    ),
    "anyio": (
        "",
        "pytestmark = pytest.mark.anyio",
        {"fixture": "pytest.fixture", "mark": ""},
    ),
    "pytest-trio": (
        "trio_mode = true",
        "",
        {"fixture": "pytest.fixture", "mark": ""},
    ),
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_kit_works_with(plugin: str, pytester: pytest.Pytester) -> None:
    options, imports, words = PLUGINS[plugin]
    pytester.makeini(f"[pytest]\n{options}\n")
    pytester.makepyfile(AGENT + imports + TESTS.format(**words))
    # Each with the other plugins away.
    away = [f"-pno:{other}" for other in ("asyncio", "trio", "anyio") if other not in plugin]
    result = pytester.runpytest_subprocess("-W", "error", *away, timeout=300)
    result.assert_outcomes(passed=6 if plugin == "anyio" else 3)  # that runs each on both loops
