"""Masks secrets in what httpcore logs: at DEBUG, it shows what servers answer."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from prefactor_core.api.quoting import masked

_LOGGERS: Final = (
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.proxy",
    "httpcore.socks",
)

_lock = Lock()
_uses: Final = Counter[str]()
_secrets: tuple[str, ...] = ()


class _Mask(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass, without secrets."""
        secrets = _secrets
        try:
            text = shown = record.getMessage()
        except Exception:
            return True  # logging says itself what is wrong with it
        for secret in secrets:
            shown = masked(shown, secret)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


_mask: Final = _Mask()


@contextmanager
def masks_in_logs(*secrets: str) -> Generator[None]:
    """Mask ``secrets`` in the log records of httpcore until the block is left."""
    _change(secrets, +1)
    try:
        yield
    finally:
        _change(secrets, -1)


def _change(secrets: tuple[str, ...], uses: int) -> None:
    global _secrets
    with _lock:
        for secret in filter(None, secrets):
            _uses[secret] += uses
            if not _uses[secret]:
                del _uses[secret]
        # The longest first: one may be a part of another.
        _secrets = tuple(sorted(_uses, key=len, reverse=True))
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_mask)  # once: logging sees to it


def _renew_lock() -> None:
    """In the child of a fork, where another thread may have held it, for ever."""
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
