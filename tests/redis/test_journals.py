"""A journal together with Redis: it keeps what Redis has not acknowledged."""

from __future__ import annotations
