"""Ready-made span types for the usual steps of an agent.

A client that is given no ``schema_registry`` has them. In a run, write
``instance.span(LLMCall(model="small-1", prompt="Hello"))``, or ``@traced(LLMCall)`` above the
function that calls a model. ``standard_types()`` is a registry to add your own types to. All fields
but the first are optional; omitted fields are not recorded. Objects of these classes are recorded
in their state at the opening of the span, or at the setting of the result.

===================  ===========================================================================
class                fields
===================  ===========================================================================
``AgentRun``         ``input``, ``agent``, ``conversation_id``
``AgentRunResult``   ``output``, ``error``
``LLMCall``          ``model``, ``prompt``, ``messages``, ``system``, ``tools``, ``provider``,
                     ``temperature``, ``top_p``, ``max_tokens``, ``token_usage``
``LLMResult``        ``response``, ``tool_calls``, ``finish_reason``, ``token_usage``, ``cost`` (US
                     dollars), ``model``, ``response_id``, ``time_to_first_token`` (seconds),
                     ``error``
``ToolCall``         ``tool``, ``arguments``, ``call_id``
``ToolResult``       ``output``, ``error``
``Retrieval``        ``query``, ``source``, ``top_k``
``RetrievalResult``  ``documents``, ``error``
``Feedback``         ``rating``, ``comment``
``TokenUsage``       ``prompt_tokens``, ``completion_tokens``, ``total_tokens``,
                     ``cache_read_tokens``, ``cache_write_tokens``, ``reasoning_tokens``
``Document``         ``id``, ``text``, ``score``, ``metadata``
``StepError``        ``type``, ``message``, ``stacktrace``
===================  ===========================================================================

Their names in OpenTelemetry's semantic conventions for generative AI:

===========================================  ==================================================
here                                         there
===========================================  ==================================================
``agent:run``                                ``invoke_agent``
``AgentRun.agent``                           ``gen_ai.agent.name``
``AgentRun.conversation_id``                 ``gen_ai.conversation.id``
``AgentRun.input``, ``AgentRunResult.output``  ``gen_ai.input.messages``, ``gen_ai.output.messages``
``agent:llm_call``                           ``chat``, ``generate_content``, ``text_completion``
``LLMCall.model``                            ``gen_ai.request.model``
``LLMCall.provider``                         ``gen_ai.provider.name``
``LLMCall.prompt``, ``messages``             ``gen_ai.input.messages``
``LLMCall.system``                           ``gen_ai.system_instructions``
``LLMCall.tools``                            ``gen_ai.tool.definitions``
``LLMCall.temperature``                      ``gen_ai.request.temperature``
``LLMCall.top_p``                            ``gen_ai.request.top_p``
``LLMCall.max_tokens``                       ``gen_ai.request.max_tokens``
``LLMResult.response``, ``tool_calls``       ``gen_ai.output.messages``
``LLMResult.finish_reason``                  ``gen_ai.response.finish_reasons``
``LLMResult.model``                          ``gen_ai.response.model``
``LLMResult.response_id``                    ``gen_ai.response.id``
``LLMResult.time_to_first_token``            ``gen_ai.response.time_to_first_chunk``
``TokenUsage.prompt_tokens``                 ``gen_ai.usage.input_tokens``
``TokenUsage.completion_tokens``             ``gen_ai.usage.output_tokens``
``TokenUsage.cache_read_tokens``             ``gen_ai.usage.cache_read.input_tokens``
``TokenUsage.cache_write_tokens``            ``gen_ai.usage.cache_creation.input_tokens``
``TokenUsage.reasoning_tokens``              ``gen_ai.usage.reasoning.output_tokens``
``agent:tool_call``                          ``execute_tool``
``ToolCall.tool``                            ``gen_ai.tool.name``
``ToolCall.call_id``                         ``gen_ai.tool.call.id``
``ToolCall.arguments``, ``ToolResult.output``  ``gen_ai.tool.call.arguments``, ``.result``
``agent:retrieval``                          ``retrieval``
``Retrieval.query``                          ``gen_ai.retrieval.query.text``
``Retrieval.source``                         ``gen_ai.data_source.id``
``Retrieval.top_k``                          ``gen_ai.request.top_k``
``RetrievalResult.documents``                ``gen_ai.retrieval.documents``
``StepError.type``                           ``error.type``
===========================================  ==================================================

Prefactor's open dashboard reads the model at ``payload.inputs.model``, the tokens at
``payload.token_usage``, the finish reason at ``result_payload.ai.finishReason`` and a rating at
``payload.inputs.rating``. Therefore ``inputs`` and ``ai`` are filled in; do not set them. Tokens
are known only after the call: they are copied into the payload when the span ends. If the span was
sent before its end, because of ``start()`` or a child, they are in the result alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct, field

from prefactor_core.schema_registry import SchemaRegistry
from prefactor_core.schema_registry.sensitive import Sensitive
from prefactor_core.schema_registry.type_schema import SpanParams


class StepError(Struct, kw_only=True, omit_defaults=True):
    """The error of a step, as a span records it when its block raises."""

    type: str
    message: str | None = None
    stacktrace: str | None = None


class AgentRunResult(Struct, kw_only=True, omit_defaults=True):
    """The outcome of an agent's task."""

    output: object = None
    error: StepError | None = None


class AgentRun(Struct, SpanParams[AgentRunResult], kw_only=True, omit_defaults=True):
    """``agent:run``: an agent, or an agent that it calls, works on a task.

    Record tokens and costs with the LLM calls inside, so that each is counted once.
    """

    input: object
    agent: str | None = None
    conversation_id: str | None = None


class TokenUsage(Struct, kw_only=True, omit_defaults=True):
    """The tokens of a call. Tokens read from or written to a cache are part of the prompt's,
    reasoning tokens are part of the completion's; the total is filled in."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.total_tokens is None:
            self.total_tokens = self.prompt_tokens + self.completion_tokens


class LLMResult(Struct, kw_only=True, omit_defaults=True):
    """The answer of a model. ``cost`` is in US dollars, ``time_to_first_token`` in seconds;
    ``model``: the model that answered, if it is not the requested one."""

    response: str | Sensitive | None = None
    tool_calls: Sequence[Mapping[str, object]] | None = None
    finish_reason: str | None = None
    token_usage: TokenUsage | None = None
    cost: float | None = None
    model: str | None = None
    response_id: str | None = None
    time_to_first_token: float | None = None
    error: StepError | None = None
    ai: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.finish_reason is not None:
            self.ai = {"finishReason": self.finish_reason}


class LLMCall(Struct, SpanParams[LLMResult], kw_only=True, omit_defaults=True):
    """``agent:llm_call``: a call of a model, with a ``prompt`` or with ``messages``."""

    model: str
    prompt: str | Sensitive | None = None
    messages: Sequence[Mapping[str, object]] | None = None
    system: str | Sensitive | None = None
    tools: Sequence[Mapping[str, object]] | None = None
    provider: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    token_usage: TokenUsage | None = None
    inputs: dict[str, str] = field(default_factory=dict[str, str])

    from_result = ("token_usage",)

    def __post_init__(self) -> None:
        self.inputs = {"model": self.model}


class ToolResult(Struct, kw_only=True, omit_defaults=True):
    """The output of a tool."""

    output: object = None
    error: StepError | None = None


class ToolCall(Struct, SpanParams[ToolResult], kw_only=True, omit_defaults=True):
    """``agent:tool_call``: a call of a tool. ``call_id``: the model's id of this call."""

    tool: str
    arguments: Mapping[str, object] | None = None
    call_id: str | None = None


class Document(Struct, kw_only=True, omit_defaults=True):
    """A found part of a source."""

    id: str | None = None
    text: str | Sensitive | None = None
    score: float | None = None
    metadata: Mapping[str, object] | None = None


class RetrievalResult(Struct, kw_only=True, omit_defaults=True):
    """The found documents; an empty list says that none were found."""

    documents: Sequence[Document] | None = None
    error: StepError | None = None


class Retrieval(Struct, SpanParams[RetrievalResult], kw_only=True, omit_defaults=True):
    """``agent:retrieval``: a query to a source of data."""

    query: str | Sensitive
    source: str | None = None
    top_k: int | None = None


class Feedback(Struct, kw_only=True, omit_defaults=True):
    """``agent:feedback``: a rating of the run: ``up``, ``down``, or a mark of your own."""

    rating: str
    comment: str | Sensitive | None = None
    inputs: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.inputs = {"rating": self.rating}


# What follows is Liquid that the service's Solid and the local Prefactor's python-liquid both take.
# Both render an object or a list as nothing, and neither is sure to have a filter for JSON.
_MOST_SHOWN: Final = 3
"""The items of a list, or the fields of an object, that a summary shows."""

_LONGEST: Final = 500
"""The characters of a text that a summary shows."""


def _plain(field: str, into: str) -> str:
    """Assign to ``into`` the text of a plain value, cut, or "" for a list or an object; and to
    ``count`` its size."""
    return (
        f"{{% assign count = {field} | size %}}"
        # A list has an item 0, a text has none. (Nor has an object, but few have so many fields.)
        f"{{% if count > {_LONGEST} and {field}[0] == nil %}}"
        f"{{% assign {into} = {field} | truncate: {_LONGEST} %}}"
        f"{{% else %}}{{% capture {into} %}}{{{{{field}}}}}{{% endcapture %}}{{% endif %}}"
    )


def _any(field: str) -> str:
    """Assign to ``text`` what a field has: a plain value; or the first items of a list, the first
    fields of an object, and how many there are. ``…`` stands for what is nested deeper, ``none``
    for nothing."""
    one = (
        "{% assign value = item %}"
        "{% if item[0] %}{{item[0]}}: {% assign value = item[1] %}{% endif %}"
        + _plain("value", "plain")
        + '{% if plain == "" %}{% for pair in value limit: 1 %}{% if pair[0] and pair[1] %}'
        "{% assign deep = pair[1] %}"
        + _plain("deep", "plain")
        + '{% capture plain %}{{pair[0]}}: {{plain}}{% unless plain == "" %}, {% endunless %}…'
        "{% endcapture %}{% endif %}{% endfor %}{% endif %}"
        '{% if plain == "" and value and value != empty %}…{% else %}{{plain | default: "none"}}'
        "{% endif %}"
    )
    items = (
        f"{{% for item in {field} limit: {_MOST_SHOWN} %}}"
        f"{{% unless forloop.first %}}, {{% endunless %}}{one}{{% endfor %}}"
        f"{{% assign count = {field} | size %}}"
        f"{{% if count > {_MOST_SHOWN} %}}, … ({{{{count}}}}){{% endif %}}"
    )
    return _plain(field, "text") + (
        f'{{% if text == "" and count > 0 %}}{{% capture text %}}{items}{{% endcapture %}}'
        "{% endif %}"
    )


def _result(field: str) -> str:
    """Show a field of the result, unless it is empty."""
    return _any(field) + '{% if text != "" %} → {{text}}{% endif %}'


_FAILED: Final = (
    "{% if error %} ✕ {{error}}{{error.type}}{% if error.message %}: "
    f"{{{{error.message | truncate: {_LONGEST}}}}}{{% endif %}}{{% endif %}}"
)
"""The error of a failed step; an agent's own may be a text."""

_ASKED: Final = (
    f"{{% assign asked = prompt | default: '' | truncate: {_LONGEST} %}}"
    "{% assign count = messages | size %}"
    '{% if asked == "" and count > 0 %}'
    "{% if count < 500 %}{% for message in messages %}"
    '{% if message.role == "user" %}{% assign last = message %}{% endif %}{% endfor %}{% endif %}'
    "{% if last.content[0] %}"
    "{% capture asked %}{% for part in last.content limit: 20 %}"
    f"{{{{part.text | truncate: {_LONGEST}}}}}{{% endfor %}}{{% endcapture %}}"
    "{% elsif last.content != empty %}"
    f"{{% assign asked = last.content | truncate: {_LONGEST} %}}{{% endif %}}"
    '{% if asked == "" %}{% capture asked %}{{count}} message'
    "{% unless count == 1 %}s{% endunless %}{% endcapture %}{% endif %}{% endif %}"
    '{% if asked != "" %}: {{asked}}{% endif %}'
)
"""The prompt, or the last message of the user, or how many messages there are. (The local
Prefactor bounds the rounds of a loop.)"""

_CALLED: Final = (
    "{% for call in tool_calls %}{% if forloop.first %} → calls {% else %}, {% endif %}"
    "{{call.name}}{{call.function.name}}{% endfor %}"
)
"""The names of the tools that a model calls, in either of the usual forms."""


def standard_types() -> SchemaRegistry:
    """Return a new registry with all these span types; add your own to it."""
    registry = SchemaRegistry()
    registry.register_type(
        "agent:run",
        params=AgentRun,
        result=AgentRunResult,
        title="Run",
        template=(
            "{{agent}}"
            + _any("input")
            + '{% if agent and text != "" %}: {% endif %}{{text}}'
            + _result("output")
            + _FAILED
        ),
    )
    registry.register_type(
        "agent:llm_call",
        params=LLMCall,
        result=LLMResult,
        title="LLM call",
        template=(
            "{{model}}"
            + _ASKED
            + f"{{% if response %}} → {{{{response | truncate: {_LONGEST}}}}}{{% endif %}}"
            + _CALLED
            + _FAILED
        ),
    )
    registry.register_type(
        "agent:tool_call",
        params=ToolCall,
        result=ToolResult,
        title="Tool call",
        template=(
            "{{tool}}"
            + _any("arguments")
            + '{% if text != "" %}({{text}}){% endif %}'
            + _result("output")
            + _FAILED
        ),
    )
    registry.register_type(
        "agent:retrieval",
        params=Retrieval,
        result=RetrievalResult,
        title="Retrieval",
        template=(
            f"{{{{query | truncate: {_LONGEST}}}}}"
            "{% if documents %} → {{documents | size}} document"
            "{% unless documents.size == 1 %}s{% endunless %}{% endif %}" + _FAILED
        ),
    )
    registry.register_type(
        "agent:feedback",
        params=Feedback,
        title="Feedback",
        template=(
            f"{{{{rating}}}}{{% if comment %}}: {{{{comment | truncate: {_LONGEST}}}}}{{% endif %}}"
        ),
    )
    return registry
