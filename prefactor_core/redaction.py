"""Ready-made functions for ``redact=``: secrets are known by the keys they stand under. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from functools import lru_cache
from typing import Final, cast

from prefactor_core.exceptions import PrefactorValueError

# Those that are credentials, by name: max_tokens, token_count, time_to_first_token and so on
# are not.
_TOKENS: Final = (
    *("access", "api", "auth", "bearer", "bot", "client", "csrf", "github", "gitlab", "hf"),
    *("oauth", "private", "refresh", "secret", "security", "service", "session", "slack"),
    *("user", "xsrf"),
)

SECRETS: Final = (
    *("*password*", "*passwd*", "*passphrase*", "pwd", "*_pwd"),
    *("*secret", "*secrets", "*secret_*", "*secretkey", "*secretaccesskey"),
    *("*api_key*", "*apikey*", "*access_key*", "*accesskey*", "*private_key*", "*privatekey*"),
    *("*signing_key*", "*signingkey*", "*encryption_key*", "*encryptionkey*"),
    *("auth", "*authorization", "*credential*", "*cookie", "*cookies", "jwt", "*_jwt"),
    *("token", "id_token", "*_id_token", "idtoken", "*personal_access_token*"),
    *(f"*{kind}_token" for kind in _TOKENS),
    *(f"*{kind}token" for kind in _TOKENS),
)
"""The keys that :func:`redact_keys` takes for those of secrets when it is told none."""

_LONGEST_KEPT: Final = 100


def redact_keys(
    *patterns: str, replacement: str = "[redacted]"
) -> Callable[[dict[str, object]], dict[str, object]]:
    """A function for ``redact=`` that puts ``replacement`` in place of what must not be seen.

    That is every value, at any depth, under a key that matches one of ``patterns``: ``*``
    stands for any text and ``?`` for any character; case does not matter, and ``-`` is the
    same as ``_``. Without patterns it is those of :data:`SECRETS`; give ``*SECRETS`` along
    with your own to have both.

    Text inside of values is not searched: a key in a prompt stays. The function changes the
    payload it is given, which is a copy that is nobody else's, and returns it.

    Raises :class:`PrefactorValueError` for a pattern that is no text or empty.
    """
    if not isinstance(replacement, str):
        raise PrefactorValueError(f"replacement must be a string, got {replacement!r}")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise PrefactorValueError(
                "a pattern of redact_keys must be the text of a key, in which '*' and '?' stand "
                f"for any text and any character, got {pattern!r}"
            )
    # A "[" is itself, so that "-" means nothing but itself either.
    found = re.compile(
        "|".join(translate(_plain_key(p).replace("[", "[[]")) for p in patterns or SECRETS)
    )

    def is_hidden(key: str) -> bool:
        return found.match(_plain_key(key)) is not None

    quick = lru_cache(maxsize=1_024)(is_hidden)

    def redact(payload: dict[str, object]) -> dict[str, object]:
        waiting: list[object] = [payload]
        while waiting:
            place = waiting.pop()
            if isinstance(place, dict):
                fields = cast("dict[str, object]", place)
                for key, value in fields.items():
                    if (quick if len(key) <= _LONGEST_KEPT else is_hidden)(key):
                        fields[key] = replacement
                    elif isinstance(value, (dict, list)):
                        waiting.append(cast("object", value))
            elif isinstance(place, list):
                parts = cast("list[object]", place)
                waiting += [part for part in parts if isinstance(part, (dict, list))]
        return payload

    return redact


def _plain_key(key: str) -> str:
    return key.casefold().replace("-", "_")
