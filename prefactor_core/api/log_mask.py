"""masks_in_logs: no secret in the logs of httpcore, which show whole answers at DEBUG."""

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
        """Pass every record, without secrets."""
        secrets = _secrets
        try:
            text = shown = record.getMessage()
        except Exception:
            return True  # logging itself reports the bad record
        for secret in secrets:
            shown = masked(shown, secret)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


_mask: Final = _Mask()


@contextmanager
def masks_in_logs(*secrets: str) -> Generator[None]:
    """Mask ``secrets`` in the log records of httpcore inside the block."""
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
        # The longest first: one secret may be a part of another.
        _secrets = tuple(sorted(_uses, key=len, reverse=True))
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_mask)  # logging adds a filter only once


def _renew_lock() -> None:
    """After a fork: a thread that does not exist in the child may have held the lock."""
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
