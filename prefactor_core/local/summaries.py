"""Summaries: one line about a payload, by the Liquid template of its type (API.md section 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, TextIO

from liquid import Environment, RenderContext
from liquid.builtin.output import Output, OutputNode
from liquid.builtin.tags.echo_tag import EchoTag
from liquid.exceptions import LiquidError
from liquid.template import BoundTemplate

from prefactor_core.sensitive import hidden

_MOST_ROUNDS = 1_000
_MOST_BYTES = 10_000


class Template:
    """A Liquid template; one that does not parse makes no summaries."""

    def __init__(self, text: object) -> None:
        self._template: BoundTemplate | None = None
        if isinstance(text, str):
            try:
                self._template = _environment().from_string(text)
            except Exception:
                # Whatever it is: what is wrong with it is in no way wrong with the run.
                self._template = None

    def render(self, *payloads: Mapping[str, object]) -> str | None:
        """The summary of the fields of ``payloads``, of which the later ones win.

        What is missing is empty, and so are an object and an array. A sensitive value is shown
        as its labels. None if the template cannot be rendered with them, or takes too much.
        """
        if self._template is None:
            return None
        try:
            fields = {name: hidden(each[name]) for each in payloads for name in each}
            return self._template.render(fields)
        except Exception:  # Liquid's own, what its filters let through, a value nested too deep
            return None


class _Node(OutputNode):
    __slots__ = ()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        value = self.expression.evaluate(context)
        if isinstance(value, dict | list | tuple | range):
            return 0
        return super().render_to_output(context, buffer)


class _Output(Output):
    node_class = _Node


class _Echo(EchoTag):
    node_class = _Node  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class _Environment(Environment):
    # No template can hang the server.
    loop_iteration_limit = _MOST_ROUNDS
    local_namespace_limit = 10 * _MOST_BYTES
    output_stream_limit = _MOST_BYTES


@cache
def _environment() -> Environment:
    environment = _Environment(strict_filters=False)
    environment.add_tag(_Output)
    environment.add_tag(_Echo)
    for name, function in environment.filters.items():
        environment.filters[name] = _without_long_ranges(function)
    return environment


def _without_long_ranges(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def checked(value: object, *args: object, **options: object) -> Any:
        if isinstance(value, range) and len(value) > _MOST_ROUNDS:
            # The limits of the library count what loops and what is written, not this.
            raise LiquidError(f"a range of {len(value)} is too long", token=None)
        return function(value, *args, **options)

    return checked
