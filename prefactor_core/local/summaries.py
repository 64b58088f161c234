"""Summaries: one line about a payload, rendered by the Liquid template of its type."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sized
from functools import cache, lru_cache, wraps
from typing import Any, Final, TextIO, cast

from liquid import Environment, RenderContext, Token
from liquid.builtin.output import Output, OutputNode
from liquid.builtin.tags.echo_tag import EchoTag
from liquid.exceptions import LiquidError
from liquid.stringify import to_liquid_string
from liquid.template import BoundTemplate
from liquid.undefined import UNDEFINED

from prefactor_core.schema_registry.sensitive import hidden

_MOST_ROUNDS: Final = 1_000
_MOST_BYTES: Final = 10_000
_MOST_CHARACTERS: Final = 2_000_000
"""The longest text that a filter may make."""

_MOST_BITS: Final = 20_000
"""The bits of the largest number that a filter takes: to square one again and again takes ever
longer."""

_MOST_STEPS: Final = 100_000
"""Looking up a variable or calling a filter is a step, or more for a long text or list."""

# The bounds of a template. Looking for the ends of unclosed tags takes quadratic time.
_LONGEST_TEMPLATE: Final = 10_000
_MOST_TAGS: Final = 200


class Template:
    """A Liquid template. It renders nothing if it does not parse, or has more than 10,000
    characters or 200 tags."""

    def __init__(self, text: object) -> None:
        self._template: BoundTemplate | None = None
        if isinstance(text, str) and _is_short(text):
            self._template = _parsed(text)

    def render(self, *payloads: Mapping[str, object]) -> str | None:
        """Render the fields of ``payloads``; a later payload overrides an earlier one.

        Missing fields, objects and arrays render as nothing, sensitive values as their labels.
        None if rendering fails or exceeds a bound.
        """
        if self._template is None:
            return None
        _steps.left = _MOST_STEPS
        try:
            fields = {name: hidden(each[name]) for each in payloads for name in each}
            return self._template.render(fields)
        except Exception:  # Liquid's errors, errors in its filters, a value nested too deep
            return None


class _Node(OutputNode):
    __slots__ = ()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        value = self.expression.evaluate(context)
        if isinstance(value, dict | list | tuple | range):
            return 0
        return buffer.write(to_liquid_string(value, context.autoescape))


class _Output(Output):
    node_class = _Node


class _Echo(EchoTag):
    node_class = _Node  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class _Steps(threading.local):
    """The steps that are left for the template that this thread renders."""

    left = 0

    def spend(self, value: object) -> None:
        """Count a look at ``value``."""
        self.left -= 1
        if isinstance(value, str):
            self.left -= len(value) // 200
        elif isinstance(value, list):
            self.left -= len(cast("list[object]", value)) // 10
        if self.left < 0:
            raise LiquidError("the template takes too many steps", token=None)


_steps = _Steps()


class _Context(RenderContext):
    def get(
        self, path: list[object], *, token: Token | None, default: object = UNDEFINED
    ) -> object:
        value = super().get(path, token=token, default=default)
        _steps.spend(value)
        return value


class _BoundTemplate(BoundTemplate):
    context_class = _Context


class _Environment(Environment):
    template_class = _BoundTemplate
    # Bounds, so that no template can hang the server.
    loop_iteration_limit = _MOST_ROUNDS
    # A template may assign a part of a payload; a character may take four bytes.
    local_namespace_limit = 4 * _MOST_CHARACTERS
    output_stream_limit = _MOST_BYTES


@cache
def _environment() -> Environment:
    environment = _Environment(strict_filters=False)
    environment.add_tag(_Output)
    environment.add_tag(_Echo)
    for name, function in environment.filters.items():
        environment.filters[name] = _bounded(name, function)
    return environment


# Versions and files share most templates, such as those of the standard types.
@lru_cache(maxsize=128)
def _parsed(text: str) -> BoundTemplate | None:
    try:
        return _environment().from_string(text)
    except Exception:
        # Any error at all: a bad template does not make the run bad.
        return None


def _is_short(template: str) -> bool:
    tags = template.count("{{") + template.count("{%")
    return len(template) <= _LONGEST_TEMPLATE and tags <= _MOST_TAGS


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # The library bounds loops and output, but not the work of a filter.
    @wraps(function)
    def checked(value: object, *args: object, **options: object) -> Any:
        _steps.spend(value)
        size = len(cast("Sized", value)) if isinstance(value, str | list | range) else 0
        texts = [len(text) for text in args if isinstance(text, str)]
        if (
            (size > _MOST_ROUNDS and (isinstance(value, range) or name == "uniq"))
            or (name in ("join", "replace") and size * max(texts, default=0) > _MOST_CHARACTERS)
            or size > _MOST_CHARACTERS
            or (isinstance(value, int) and value.bit_length() > _MOST_BITS)
        ):
            raise LiquidError(f"the result of {name} would be too large", token=None)
        return function(value, *args, **options)

    return checked
