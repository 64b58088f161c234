"""The first example of the README, and it with a slip each: checked, never run.

``tests/test_readme.py`` compares the text with the README. A slip that a checker does not see is
an error, as its comment is unnecessary.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true
# ruff: noqa: I001  # where the README stands, the package is not its own

import anyio
from prefactor_core import open_prefactor
from prefactor_core.span_types import LLMCall, LLMResult


async def main() -> None:
    async with open_prefactor(api_url="local:runs.db") as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            async with instance.span(LLMCall(model="small-1", prompt="Hello")) as span:
                span.set_result(LLMResult(response="Hi there"))


anyio.run(main)  # or asyncio.run(main()), or trio.run(main)


async def a_wrong_parameter() -> None:
    async with open_prefactor(api_url="local:runs.db") as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            async with instance.span(LLMCall(model="small-1", promt="Hello")) as span:  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
                span.set_result(LLMResult(response="Hi there"))


async def a_wrong_kind_of_parameter() -> None:
    async with open_prefactor(api_url="local:runs.db") as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            async with instance.span(LLMCall(model=1, prompt="Hello")) as span:  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
                span.set_result(LLMResult(response="Hi there"))


async def a_wrong_field_of_the_result() -> None:
    async with open_prefactor(api_url="local:runs.db") as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            async with instance.span(LLMCall(model="small-1", prompt="Hello")) as span:
                span.set_result(LLMResult(respons="Hi there"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def another_class_for_the_result() -> None:
    async with open_prefactor(api_url="local:runs.db") as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            async with instance.span(LLMCall(model="small-1", prompt="Hello")) as span:
                span.set_result(LLMCall(model="Hi there"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
