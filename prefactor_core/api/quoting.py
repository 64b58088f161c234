"""quoted: foreign text, made safe for an error message or a log line. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import groupby
from typing import Final

_MASK: Final = "***"
_LIMIT: Final = 500
_LONGEST_SPELLING: Final = 13
"""The most characters that spell one character of a token: eight backslashes and ``u002f``."""


def quoted(text: str, token: str) -> str:
    """``text`` on one line, without the token, cut after 500 characters.

    The token is masked as it is, and as URLs (``%2F``), JSON (``\\/``, ``\\u002f``) and the
    ``repr`` of Python spell it. Line breaks, control characters, and characters that reorder their
    neighbours are escaped as Python does it.
    """
    spread = _LONGEST_SPELLING * len(token)
    window = 4 * _LIMIT + 2 * spread
    shown = _printable(text[:window])
    if token:
        # After the escaping: escaped text may happen to spell the token.
        shown = masked(shown, token)
        if len(text) > window:
            shown = shown[:-spread]  # the end may be the first part of a token
    return shown if len(shown) <= _LIMIT else f"{shown[:_LIMIT]}…"


def masked(text: str, token: str) -> str:
    """``text`` without ``token``, in any of its spellings."""
    return _pattern_of(token).sub(_MASK, text)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@lru_cache(maxsize=32)
def _pattern_of(token: str) -> re.Pattern[str]:
    # The quantifiers are possessive (}+): no backtracking over a long run of backslashes.
    parts: list[str] = []
    for character, run in groupby(token):
        length = len(list(run))
        code = f"{ord(character):02x}"
        digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in code)
        coded = rf"\\{{0,8}}+(?:u00{digits}|x{digits})|%(?:25){{0,2}}{digits}"
        if character == "\\":
            parts.append(rf"(?:\\{{{length},{8 * length}}}+|(?:{coded}){{{length}}})")
        else:
            plain = "[ +]" if character == " " else re.escape(character)
            parts.append(rf"(?:\\{{0,8}}+{plain}|{coded}){{{length}}}")
    return re.compile("".join(parts))
