"""Older import path of a span; the code is in :mod:`prefactor_core.agent.span`."""

from prefactor_core.agent.span import SpanContext

__all__ = ["SpanContext"]
