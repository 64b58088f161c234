"""Secrets known by the names of their fields: :func:`redact_keys` for ``redact=``. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from types import NoneType
from typing import Final, cast

from prefactor_core.exceptions import PrefactorValueError

Redact = Callable[[dict[str, object]], Mapping[str, object]]
"""Takes a payload as decoded JSON, which it may change, and returns what is recorded of it."""

# A token of these is a credential. max_tokens, token_count, time_to_first_token, next_page_token
# and so on are none.
_TOKENS: Final = (
    *("access", "account", "admin", "api", "app", "auth", "authenticity", "bearer", "bot"),
    *("client", "csrf", "deploy", "device", "impersonation", "job", "login", "oauth", "portal"),
    *("private", "publish", "push", "refresh", "registration", "reset", "root", "secret"),
    *("security", "service", "session", "sas", "sso", "upload", "user", "vault", "webhook"),
    "xsrf",
    # of code hosts, registries, clouds and services
    *("anthropic", "atlassian", "aws", "azure", "bitbucket", "cargo", "circleci", "cloudflare"),
    *("codecov", "conda", "consul", "datadog", "digitalocean", "discord", "docker", "dockerhub"),
    *("doppler", "figma", "gcp", "gh", "gitea", "github", "gitlab", "google", "heroku", "hf"),
    *("hub", "hubspot", "huggingface", "jira", "kube", "mapbox", "netlify", "nomad", "notion"),
    *("npm", "nuget", "openai", "pulumi", "pypi", "registry", "replicate", "rubygems", "sentry"),
    *("shopify", "slack", "snyk", "sonar", "telegram", "terraform", "twilio", "twine", "vercel"),
    "wandb",
)
_KEYS: Final = (
    *("account", "admin", "anthropic", "app", "application", "auth", "azure", "cohere"),
    *("consumer", "decryption", "deploy", "encryption", "function", "functions", "gemini"),
    *("gpg", "groq", "hmac", "license", "master", "mistral", "openai", "pgp", "pinecone"),
    *("rsa", "secret", "sendgrid", "service", "service_role", "session", "shared", "signing"),
    *("ssh", "ssl", "storage", "stripe", "subscription", "tavily", "tls", "webhook", "write"),
)
_DATABASES: Final = (
    *("amqp", "broker", "clickhouse", "database", "db", "mongo", "mongodb", "mysql", "pg"),
    *("postgres", "postgresql", "rabbitmq", "redis", "sqlalchemy"),
)
_ACCOUNTS: Final = (
    *("admin", "db", "database", "email", "ftp", "http", "mail", "mysql", "postgres", "proxy"),
    *("redis", "root", "smtp", "ssh", "sudo", "user"),
)
_PINS: Final = ("account", "atm", "bank", "card", "login", "security", "sim", "user")


def _each(kinds: Iterable[str], what: str, short: int = 3) -> Iterable[str]:
    """Return the patterns of names such as ``access_token``, for each of ``kinds``."""
    for kind in kinds:
        name = f"{kind}_{what}"
        # A short kind must begin a word: jpg_url is no pg_url, and overwrite_key no write_key.
        yield from [f"*{name}"] if len(kind) > short else [name, f"*_{name}"]


SECRETS: Final = (
    *("*password*", "*passwd*", "*passphrase*", "*passcode*", "pwd", "*_pwd", "pgpass"),
    *_each(_ACCOUNTS, "pass"),
    *("*secret", "*secrets", "*secret_*", "*secret_key*", "*secret_access_key*"),
    *("*api_key*", "*access_key*", "*private_key*", "*signing_key*", "*encryption_key*"),
    *_each(_KEYS, "key", short=5),
    *("pem", "*_pem", "*seed_phrase", "*recovery_phrase", "*recovery_code*", "mnemonic"),
    *("auth", "*basic_auth", "*http_auth", "*proxy_auth", "*registry_auth", "*docker_auth*"),
    *("*authorization", "*authorisation", "*credential*", "bearer", "jwt", "*_jwt"),
    *("*auth_code", "*authorization_code", "code_verifier", "*client_assertion"),
    *("*saml_response", "*saml_assertion", "*service_account_json"),
    *("token", "id_token", "*_id_token", "*personal_access_token*", "*middleware_token"),
    *_each(_TOKENS, "token"),
    *(f"*{kind}_tokens" for kind in ("access", "api", "auth", "bearer", "refresh")),
    # Only alone: chat_session_id and the like mostly name a conversation.
    *("session_id", "x_session_id"),
    *("*cookie", "*cookies", "*cookie_jar", "sid", "connect_sid", "phpsessid", "jsessionid"),
    *("aspsessionid*", "*asp_net_session_id", "laravel_session", "*csrf", "*xsrf"),
    *(name for where in ("url", "uri") for name in _each(_DATABASES, where)),
    *("dsn", "*_dsn", "*connection_string", "*conn_string", "*conn_str", "*connection_uri"),
    *("*slack_webhook_url", "*discord_webhook_url"),
    # Not "signature": functions have one.
    *("sig", "x_amz_signature", "x_goog_signature", "*shared_access_signature"),
    *("*hub_signature*", "*stripe_signature", "*slack_signature"),
    *("otp", "*_otp", "*otp_code", "cvv", "*_cvv", "cvv2", "cvc", "*_cvc", "cvc2", "pin"),
    *_each(_PINS, "pin"),
)
"""The patterns of :func:`redact_keys` by default."""

LONGEST_KEPT: Final = 100
MOST_KEPT: Final = 2_000

# Compiled at the first use and not at import, since that takes milliseconds.
_WORD_STARTS: Final = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
_SEPARATORS: Final = r"[\W_]+"
_SEPARATORS_OF_PATTERN: Final = r"(?:[^\w*?]|_)+"
# A pattern for a whole name, the end of a name or a part of it.
_USUAL_PATTERN: Final = r"(\*?_?)([^*?_](?:[^*?]*[^*?_])?)(\*?)"

VALUES: Final = frozenset({"value", "Value", "VALUE"})
NAMING: Final = ("name", "key", "Name", "Key", "NAME", "KEY")
"""A field with one of these names holds the name of the value under one of ``VALUES``."""

# These are no strings in JSON, and so no names.
_NUMBERS: Final = frozenset({int, float, bool, NoneType})
_NO_TEXT: Final = frozenset({*_NUMBERS, dict, list, tuple})


class KeyRedactor:
    """Replaces the values under certain names; made by :func:`redact_keys`.

    ``shown``: names that were judged and may be shown. ``hides_nothing``: without patterns.
    """

    def __init__(self, patterns: tuple[str, ...], replacement: str) -> None:
        self._patterns = patterns
        self._replacement = replacement
        self.hides_nothing = not patterns
        self._matches: Callable[[str], bool] | None = None
        # The names judged so far. Any thread may read and add, so no set is ever iterated over.
        self.shown: set[str] = set()
        self._hidden: set[str] = set()

    def __repr__(self) -> str:
        patterns = () if self._patterns == SECRETS else self._patterns
        return f"redact_keys({', '.join(map(repr, patterns))})"

    def __reduce__(self) -> tuple[type[KeyRedactor], tuple[tuple[str, ...], str]]:
        return KeyRedactor, (self._patterns, self._replacement)  # a configuration can be pickled

    def __call__(self, payload: dict[str, object]) -> dict[str, object]:
        """Replace the secrets in ``payload``, decoded JSON, in place; return it."""
        waiting: list[object] = [payload]
        while waiting:
            place = waiting.pop()
            if isinstance(place, dict):
                fields = cast("dict[str, object]", place)
                is_named = not VALUES.isdisjoint(fields) and self.names_a_secret(fields)
                for key, value in fields.items():
                    if self.hides(key) or (is_named and key in VALUES):
                        fields[key] = self._replacement
                    elif isinstance(value, (dict, list)):
                        waiting.append(cast("object", value))
            elif isinstance(place, list):
                parts = cast("list[object]", place)
                if self._is_secret_pair(parts):
                    parts[1] = self._replacement
                waiting += [part for part in parts if isinstance(part, (dict, list))]
        return payload

    def hides(self, key: str) -> bool:
        """Whether the value under ``key`` must not be seen."""
        if key in self.shown:
            return False
        if key in self._hidden:
            return True
        if self._matches is None:
            self._matches = _matcher(self._patterns)
        hidden = self._matches(key)
        # "value" is never kept: whether it may be shown depends on the name beside it.
        if len(key) <= LONGEST_KEPT and key not in VALUES:
            if len(self.shown) + len(self._hidden) >= MOST_KEPT:
                self.shown.clear()
                self._hidden.clear()
            (self._hidden if hidden else self.shown).add(key)
        return hidden

    def names_a_secret(self, fields: Mapping[str, object]) -> bool:
        """Whether ``fields`` may be a secret's name beside its value, as headers are in HAR."""
        return any(self.may_be_a_secret_name(fields.get(name)) for name in NAMING)

    def _is_secret_pair(self, parts: list[object]) -> bool:
        return (
            len(parts) == 2
            # A word and a number are mostly another kind of list.
            and type(parts[1]) not in _NUMBERS
            and self.may_be_a_secret_name(parts[0])
        )

    def may_be_a_secret_name(self, part: object) -> bool:
        """Whether ``part`` may be a hidden name; an object that becomes a string may be one."""
        cls = type(part)
        if cls is str:
            text = cast("str", part)
            return len(text) <= LONGEST_KEPT and self.hides(text)
        return cls not in _NO_TEXT


def redact_keys(*patterns: str, replacement: str = "[redacted]") -> KeyRedactor:
    """Return a function for ``redact=`` that puts ``replacement`` in place of secrets.

    A secret is every value, at any depth, under a name that matches one of ``patterns``, in which
    ``*`` stands for any text and ``?`` for any character. ``accessToken``, ``access-token``,
    ``ACCESS_TOKEN`` and ``accesstoken`` are one name: neither case nor the separators of words
    matter. Only beside a ``*`` separators do: ``*_pin`` matches ``cardPin`` and ``card-pin``, and
    neither ``pin`` nor ``shopping``. A name is a key, or the first of two items in a list
    (``["Authorization", "Bearer ..."]``) whose second item is no number, or the string under
    ``name`` or ``key`` beside a ``value``.

    The default patterns are :data:`SECRETS`; pass ``*SECRETS`` along with your own to have both.

    The text of values is not searched: a key in a prompt stays. For that there is
    :func:`~prefactor_core.redact_credentials`. The function changes and returns the payload that
    it is given, a copy of the caller's.

    Raises :class:`PrefactorValueError` for a pattern that is no string or empty.
    """
    if not isinstance(replacement, str):
        raise PrefactorValueError(
            f"replacement must be a string, got {type(replacement).__qualname__}"
        )
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise PrefactorValueError(
                "a pattern of redact_keys must be the text of a key, in which '*' and '?' stand "
                "for any text and any character, got "
                + ("an empty one" if pattern == "" else type(pattern).__qualname__)
            )
    return KeyRedactor(patterns or SECRETS, replacement)


def _words(name: str, separators: str) -> str:
    """Return the words of a name in lower case, separated by ``_``."""
    divided = name if name.islower() else re.sub(_WORD_STARTS, "_", name)
    return re.sub(separators, "_", divided).casefold()


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a name matches one of ``patterns``."""
    whole: set[str] = set()
    inside: list[str] = []
    # The ends of names; the value says whether a word must begin there.
    ends: dict[str, bool] = {}
    others: list[str] = []
    for pattern in patterns:
        usual = re.fullmatch(_USUAL_PATTERN, _words(pattern, _SEPARATORS_OF_PATTERN))
        before, words, after = usual.groups() if usual else ("?", "", "")
        name = words.replace("_", "")
        if (before, after) == ("", ""):
            whole.add(name)
        elif (before, after) == ("*", "*"):
            inside.append(name)
        elif before in ("*", "*_") and not after:
            ends[name] = before == "*_" and ends.get(name, True)
        else:
            others.append(_regex(pattern))
    longest = max(map(len, ends), default=0)
    other = re.compile("|".join(others), re.DOTALL) if others else None

    def matches(key: str) -> bool:
        words = _words(key, _SEPARATORS)
        name = words.replace("_", "")
        if name in whole or any(part in name for part in inside):
            return True
        for start in range(max(len(name) - longest, 0), len(name)):
            divided = ends.get(name[start:])
            if divided is not None and (not divided or start in _starts_of_words(words)):
                return True
        return other is not None and other.fullmatch(words) is not None

    return matches


def _starts_of_words(words: str) -> list[int]:
    """Return where all words but the first begin, separators not counted."""
    return list(accumulate(map(len, words.split("_"))))[:-1]


def _regex(pattern: str) -> str:
    """Return a regular expression for the words of the names that ``pattern`` matches."""
    # Atomic groups keep it linear: once a text between two stars is found, no other place is tried.
    first, *others = _words(pattern, _SEPARATORS_OF_PATTERN).split("*")
    if not others:
        return f"_?{_piece(first)}_?"
    *inner, last = map(_piece, others)
    start = f"_?{_piece(first)}" if first else ""
    return f"{start}{''.join(f'(?>.*?{piece})' for piece in inner)}.*{last}{'_?' if last else ''}"


def _piece(words: str) -> str:
    # Between the letters of a name there may be separators.
    body = words.strip("_")
    letters = ("." if letter == "?" else re.escape(letter) for letter in body if letter != "_")
    before = "_" if words.startswith("_") else ""
    after = "_" if words.endswith("_") and body else ""
    return f"{before}{'_?'.join(letters)}{after}"


REDACT_SECRETS: Final = redact_keys()
"""The default of ``redact=``."""
