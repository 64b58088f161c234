"""The seed's path to a span."""

from prefactor_core.agent.span_context import SpanContext

__all__ = ["SpanContext"]
