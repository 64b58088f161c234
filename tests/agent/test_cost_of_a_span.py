"""The cost of a recorded span in calls: no clock takes part, so a busy machine changes nothing."""

from __future__ import annotations

import cProfile
import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from support.harness import recording

import prefactor_core
from prefactor_core import AgentInstanceHandle

MOST_CALLS = 45
"""Python and builtin calls, from ``instance.span()`` to the end of the block."""

MOST_CALLS_IN_A_TREE = 57
"""The same, for each span of a tree ten deep: the API must know a parent before its child, so that
all but the innermost are recorded by two operations."""

MOST_CALLS_BY_HAND = 45
"""The same, for ``begin()`` and ``end()`` without a block."""

MOST_FILES = 12
"""Files of the package that these calls are in."""

_PACKAGE = Path(prefactor_core.__file__).parent
_SPANS = 50
_DEPTH = 10
_PAYLOAD = {
    "model": "some-model",
    "temperature": 0.2,
    "max_tokens": 1024,
    "prompt": "Which of the two mountains is higher, and how do we know? " * 4,
    "metadata": {"user": "u-123", "session": "s-456", "attempt": 1},
}
_RESULT = {
    "response": "The first one, by 12.4 metres. " * 8,
    "tokens": 150,
    "finish_reason": "stop",
}


class Cost:
    """Calls, and files of the package, for each of the ``_SPANS`` spans that ``record`` records.

    The calls of this file itself are not counted.
    """

    def __init__(self, record: Callable[[], None]) -> None:
        record()  # the first spans fill caches and wake the worker
        profile = cProfile.Profile()
        gc.disable()  # collecting calls the finalizers of other objects
        try:
            profile.enable()
            record()
            profile.disable()
        finally:
            gc.enable()
        self._by_function = Counter[str]()
        self.files = set[str]()
        for function in profile.getstats():
            code = function.code
            if isinstance(code, str):  # a builtin
                if "_lsprof.Profiler" not in code:
                    self._by_function[code] += function.callcount
            elif code.co_filename != __file__:
                path = Path(code.co_filename)
                if path.is_relative_to(_PACKAGE):
                    path = path.relative_to(_PACKAGE)
                    self.files.add(path.as_posix())
                self._by_function[f"{path.as_posix()}: {code.co_name}"] += function.callcount

    @property
    def calls(self) -> float:
        return self._by_function.total() / _SPANS

    def __str__(self) -> str:
        """The figures, and the functions by their calls for each span."""
        functions = self._by_function.most_common()
        listed = "\n".join(f"{calls / _SPANS:6.2f} {name}" for name, calls in functions)
        return f"{self.calls:.2f} calls for a span, in {len(self.files)} files\n{listed}"


def _record_flat(instance: AgentInstanceHandle) -> None:
    for _ in range(_SPANS):
        with instance.span("agent:llm", payload=_PAYLOAD) as span:
            span.set_result(_RESULT)


def _record_by_hand(instance: AgentInstanceHandle) -> None:
    for _ in range(_SPANS):
        instance.span("agent:llm", payload=_PAYLOAD).begin().end(result=_RESULT)


def _record_nested(instance: AgentInstanceHandle) -> None:
    def nest(depth: int) -> None:
        with instance.span("agent:llm", payload=_PAYLOAD) as span:
            if depth > 1:
                nest(depth - 1)
            span.set_result(_RESULT)

    for _ in range(_SPANS // _DEPTH):
        nest(_DEPTH)


async def test_a_span_with_payload_and_result_takes_few_calls_in_few_files() -> None:
    async with recording() as r:
        # No await until the count is done: the workers do not run in between.
        cost = Cost(lambda: _record_flat(r.instance))
    assert cost.calls <= MOST_CALLS, str(cost)
    assert len(cost.files) <= MOST_FILES, str(cost)


async def test_a_span_by_hand_takes_as_few_calls_as_one_with_a_block() -> None:
    async with recording() as r:
        cost = Cost(lambda: _record_by_hand(r.instance))
    assert cost.calls <= MOST_CALLS_BY_HAND, str(cost)
    assert len(cost.files) <= MOST_FILES + 1, str(cost)  # span_lifecycle.py


async def test_a_span_in_a_tree_ten_deep_takes_the_calls_of_two_operations() -> None:
    async with recording() as r:
        cost = Cost(lambda: _record_nested(r.instance))
    assert cost.calls <= MOST_CALLS_IN_A_TREE, str(cost)
