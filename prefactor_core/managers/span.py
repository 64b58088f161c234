"""The seed's path to the manager of spans."""

from prefactor_core.recording.spans import SpanManager

__all__ = ["SpanManager"]
