"""Older import path; the code is in :mod:`prefactor_core.recording.span_manager`."""

from prefactor_core.recording.span_manager import SpanManager

__all__ = ["SpanManager"]
