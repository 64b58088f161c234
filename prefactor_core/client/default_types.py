"""The span types of clients that are given no registry.

To make them takes some 16 ms. This module is imported, and they are made, in a thread.
"""

from __future__ import annotations

from typing import Final

from prefactor_core.span_types import standard_types

DEFAULT_TYPES: Final = standard_types()
"""Shared by all those clients: nothing adds to it."""
