"""The seed's import path of the manager of spans."""

from prefactor_core.recording.span_manager import SpanManager

__all__ = ["SpanManager"]
