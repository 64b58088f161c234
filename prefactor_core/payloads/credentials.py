"""Secrets known by their form: :func:`redact_credentials` for ``redact=``. Pure."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from functools import cache
from itertools import chain, count
from typing import Final, cast

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.payloads.redaction import REDACT_SECRETS, Redact, redact_keys

# A digit tells a token from words. (Every search has a bound, so that the time is linear.)
_WITH_DIGIT: Final = r"(?=[A-Za-z._~+/=-]{0,200}[0-9])"
_TOKEN: Final = r"[A-Za-z0-9._~+/=-]"

# The beginnings of tokens, and their continuation.
_TOKENS: Final = (
    ("sk- sk_live_ sk_test_ rk_live_ rk_test_ pplx- gsk_ xai-", rf"{_WITH_DIGIT}[\w-]{{16,}}"),
    ("ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"\w{20,}"),
    ("glpat- glptt- gldt- glrt- glcbt- glft- glsoat- gloas-", r"[\w.-]{16,}"),
    ("npm_ hf_", r"[A-Za-z0-9]{30,}"),
    ("pypi- AIza", r"[\w-]{30,}"),
    ("dckr_pat_ dckr_oat_ ya29. GOCSPX-", r"[\w-]{20,}"),
    ("xoxa- xoxb- xoxe- xoxe.xoxp- xoxo- xoxp- xoxr- xoxs- xapp-", r"[\w-]{10,}"),
    ("AKIA ASIA", r"[A-Z0-9]{16}(?![A-Z0-9])"),
    ("SG.", r"[\w-]{16,}\.[\w-]{16,}"),
    ("whsec_ shpat_", r"[A-Za-z0-9+/=]{16,}"),
    ("eyJ", r"[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*){1,3}"),
)
_OTHERS: Final = (
    (
        "-----BEGIN",
        (
            r"(?P<secret>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?:[^-]|-(?!----))*+-----END [A-Z0-9 ]{0,60}-----|[A-Za-z0-9+/=\\\s]*))"
        ),
    ),
    (
        "earer EARER",
        (
            r"\b(?i:bearer)[\s:]{1,8}"
            rf"(?P<secret>{_WITH_DIGIT}{_TOKEN}{{8,}}|{_TOKEN}{{24,}})"
        ),
    ),
    ("asic ASIC", r"\b(?i:basic)\s{1,8}(?P<basic>[A-Za-z0-9+/]{4,}={0,2})"),
    ("://", r"""://[^\s/?#@:"'<>]{0,256}:(?P<secret>[^\s/?#"'<>]{1,512})@"""),
    ("hooks.slack.com/services/", r"hooks\.slack\.com/services/(?P<secret>[\w/-]{10,})"),
)


def _begins(prefixes: str, rest: str) -> str:
    # At the start of a word, so that no two attempts scan the same text.
    return rf"(?<![\w-])(?P<secret>(?:{'|'.join(map(re.escape, prefixes.split()))}){rest})"


@cache
def _rules() -> tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]:
    """Return the rules: a pattern, and the marks of which a text with a match has at least one."""
    # Compiled at the first use: that takes milliseconds, and few programs need them.
    return tuple(
        (tuple(marks.split()), re.compile(regex))
        for marks, regex in (*_OTHERS, *((each[0], _begins(*each)) for each in _TOKENS))
    )


def redact_credentials(
    then: Redact | None = REDACT_SECRETS, *, replacement: str = "[redacted]"
) -> Redact:
    """Return a function for ``redact=`` that replaces credentials inside of texts.

    Credentials are: the words after ``Bearer`` and ``Basic``, JSON Web Tokens, private keys (PEM),
    the password in ``scheme://user:password@host``, and tokens with a known beginning: those of
    OpenAI and Anthropic (``sk-``), GitHub, GitLab, npm, PyPI, Docker, Hugging Face, Slack,
    Stripe, AWS, Google and others. The text around a credential stays. All texts of a payload are
    searched, names included, which takes some 20 ms for 500 kB.

    ``then``: another such function, which runs on the outcome. The default, ``redact_keys()``,
    hides secrets under the usual names, too; None runs nothing more.

    Raises :class:`PrefactorValueError` for a ``then`` that is no function.
    """
    if not isinstance(replacement, str):
        raise PrefactorValueError(
            f"replacement must be a string, got {type(replacement).__qualname__}"
        )
    factories = (redact_keys, redact_credentials)
    if then is not None and (not callable(then) or cast("object", then) in factories):
        raise PrefactorValueError(
            "then must be a function that takes a payload, such as redact_keys() gives, got "
            f"{type(then).__qualname__}"
        )

    def redact(payload: dict[str, object]) -> Mapping[str, object]:
        masked = _masked(payload, replacement)
        return masked if then is None else then(masked)

    return redact


def _masked(payload: dict[str, object], replacement: str) -> dict[str, object]:
    waiting: list[object] = [payload]
    while waiting:
        place = waiting.pop()
        if isinstance(place, dict):
            fields = cast("dict[str, object]", place)
            if any(masked_text(key, replacement) != key for key in fields):
                items = list(fields.items())
                fields.clear()
                for key, value in items:
                    fields[_free(masked_text(key, replacement), fields)] = value
            for key, value in fields.items():
                if isinstance(value, str):
                    fields[key] = masked_text(value, replacement)
                elif isinstance(value, (dict, list)):
                    waiting.append(cast("object", value))
        elif isinstance(place, list):
            parts = cast("list[object]", place)
            for index, part in enumerate(parts):
                if isinstance(part, str):
                    parts[index] = masked_text(part, replacement)
                elif isinstance(part, (dict, list)):
                    waiting.append(cast("object", part))
    return payload


def _free(key: str, fields: Mapping[str, object]) -> str:
    """Return ``key``, numbered if it is taken, so that the values of two credentials are kept."""
    return next(
        name for name in chain([key], (f"{key} {n}" for n in count(2))) if name not in fields
    )


def masked_text(text: str, replacement: str) -> str:
    """Return ``text`` with ``replacement`` in place of each credential."""
    for marks, found in _rules():
        if any(mark in text for mark in marks):
            text = found.sub(lambda match: _without_secret(match, replacement), text)
    return text


def _without_secret(match: re.Match[str], replacement: str) -> str:
    if match.lastgroup == "basic" and not _is_basic(match["basic"]):
        return match[0]
    start, end = match.span(match.lastgroup or 0)
    text = match.string
    return text[match.start() : start] + replacement + text[end : match.end()]


def _is_basic(text: str) -> bool:
    """Whether it is a name and a password in HTTP's form, and no word ("basic principles")."""
    try:
        found = b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
    except ValueError:
        return False
    return ":" in found and found.isprintable()
