"""The seed's path to a span."""

from prefactor_core.agent.span import SpanContext

__all__ = ["SpanContext"]
