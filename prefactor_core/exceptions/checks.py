"""Conversions of values from callers, environments or files to the required type. Pure.

Each function raises :class:`PrefactorValueError`, with the ``name`` of the value, the value and
the requirement.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from typing import TYPE_CHECKING, cast

import msgspec
from msgspec import Raw

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.models.clock import PLAIN_DATETIME, to_datetime, to_nanoseconds
from prefactor_core.models.lifecycle import OUTCOMES

if TYPE_CHECKING:
    import signal

_MOST_LEVELS = 32
"""How deep the part is looked for that cannot be written as JSON; a value may hold itself."""

_NEAR = 0.8
"""The likeness of a misspelled name, from 0 to 1: a wrong letter, or two."""

_LONG_NAME = 60
"""Comparing names takes the square of their length."""

# Of printable ASCII: it goes into a header.
_SDK_ENTRY = r"[!-~]+@[!-?A-~]+( [!-~]+@[!-?A-~]+)*"


def host_of(url: str) -> str | None:
    """The host of ``url``, without brackets; None if it has none, or an invalid port."""
    from urllib.parse import urlsplit  # here: it takes milliseconds to import

    try:
        parts = urlsplit(url)
        return None if parts.port == 0 else parts.hostname
    except ValueError:  # the port is no number, or too large
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``, a name or an address without brackets."""
    from ipaddress import ip_address  # here: it takes milliseconds to import

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def to_text(name: str, value: object) -> str:
    """Return a string, without the blanks around it."""
    if not isinstance(value, str):
        raise PrefactorValueError(f"{name} must be a string, got {type(value).__qualname__}")
    return value.strip()


def to_sdk_entry(name: str, value: object) -> str:
    """Return the name of a package, or several, for the header ``X-Prefactor-SDK``."""
    text = to_text(name, value)
    if not re.fullmatch(_SDK_ENTRY, text):
        raise PrefactorValueError(
            f"{name} must be package@version, such as 'prefactor-langchain@0.3.0' (several are "
            f"divided by one blank), in printable ASCII, got {in_message(value)}"
        )
    return text


def to_optional_text(name: str, value: str | None) -> str | None:
    """Return None, or a string that is not blank and can be sent, as it is."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise PrefactorValueError(
            f"{name} must be a text that is not empty, got {in_message(value)}"
        )
    check_text(name, value or "")
    return value


def check_text(name: str, value: object) -> None:
    """Raise :class:`PrefactorValueError` if this is no string that can be sent."""
    try:
        to_text(name, value).encode()
    except UnicodeEncodeError:
        raise PrefactorValueError(f"{name} must be a text without lone surrogates") from None


def to_json_object(name: str, value: Mapping[str, object]) -> Raw:
    """Return the JSON of a mapping."""
    if not isinstance(value, Mapping):
        raise PrefactorValueError(f"{name} must be a mapping, got {in_message(value)}")
    try:
        return Raw(msgspec.json.encode(value))
    except Exception as error:
        problem = json_problem(value, error)
    raise PrefactorValueError(f"{name} cannot be written as JSON: {problem}")


def json_problem(value: object, error: Exception) -> str:
    """The reason why ``value`` cannot be written as JSON, and the place in it.

    ``error``: that of writing it.
    """
    place = ""
    with suppress(Exception):  # a mapping of the caller may raise anything
        for _ in range(_MOST_LEVELS):
            parts: Iterable[tuple[object, object]] = ()
            if isinstance(value, Mapping):
                parts = cast("Mapping[object, object]", value).items()
            elif isinstance(value, list | tuple):
                parts = enumerate(cast("list[object]", value))
            for key, part in parts:
                try:
                    msgspec.json.encode(part)
                except Exception as problem:
                    place, value, error = f"{place}[{in_message(key)}]", part, problem
                    break
            else:
                break
    reason = "a lone surrogate in a text" if isinstance(error, UnicodeEncodeError) else str(error)
    return f"at {place}: {reason}" if place else reason


def to_number(name: str, value: object) -> float:
    """Return a number; a string of one (from an environment or a file) is converted."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise PrefactorValueError(f"{name} must be a number, got {in_message(value)}")


def to_whole(name: str, value: object) -> int:
    """Return a whole number."""
    number = to_number(name, value)
    if not number.is_integer():
        raise PrefactorValueError(f"{name} must be a whole number, got {in_message(value)}")
    return int(number)


def to_positive(name: str, value: object) -> float:
    """Return a number larger than 0."""
    number = to_number(name, value)
    if not number > 0:
        raise PrefactorValueError(f"{name} must be positive, got {in_message(value)}")
    return number


def to_seconds(name: str, value: object) -> float:
    """Return a number of seconds, 0 or more."""
    number = to_number(name, value)
    if not number >= 0:
        raise PrefactorValueError(f"{name} must be non-negative, got {in_message(value)}")
    return number


def to_at_least(name: str, value: object, least: int) -> int:
    """Return a whole number, ``least`` or more."""
    number = to_whole(name, value)
    if number < least:
        raise PrefactorValueError(f"{name} must be at least {least}, got {in_message(value)}")
    return number


def to_folder(name: str, value: object) -> str:
    """Return the absolute path of a folder as text; empty for none."""
    path: object = value
    if isinstance(value, os.PathLike):
        path = os.fspath(cast("os.PathLike[str]", value))
    try:
        is_path = isinstance(path, str) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_path = False
    if not isinstance(path, str) or not is_path:
        raise PrefactorValueError(f"{name} must be the path of a folder, got {in_message(path)}")
    try:
        return os.path.abspath(os.path.expanduser(path)) if path else ""  # noqa: PTH100, PTH111
    except OSError:
        raise PrefactorValueError(
            f"{name} must be an absolute path, because the working directory was deleted, got "
            f"{in_message(path)}"
        ) from None


def to_statuses(name: str, value: object) -> tuple[int, ...]:
    """Return HTTP statuses of errors, 400 to 599."""
    given = cast("Iterable[object]", value)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise PrefactorValueError(
            f"{name} must be a collection of HTTP statuses, got {in_message(given)}"
        )
    statuses = tuple(to_whole(name, status) for status in given)
    for status in statuses:
        if not 400 <= status <= 599:
            raise PrefactorValueError(
                f"{name} must be between 400 and 599, got {in_message(status)}"
            )
    return statuses


def to_count(name: str, value: object) -> int:
    """Return a whole number, 0 or more."""
    number = to_whole(name, value)
    if number < 0:
        raise PrefactorValueError(f"{name} must be non-negative, got {in_message(value)}")
    return number


def to_time(name: str, value: object) -> int:
    """Return the nanoseconds since 1970 of a ``datetime`` with a time zone."""
    if not isinstance(value, PLAIN_DATETIME):
        raise PrefactorValueError(
            f"{name} must be a datetime, got {in_message(value)}: datetime.now(UTC) gives one"
        )
    problem = ""
    try:
        if value.utcoffset() is not None:
            moment = PLAIN_DATETIME(
                value.year,
                value.month,
                value.day,
                value.hour,
                value.minute,
                value.second,
                value.microsecond,
                value.tzinfo,
                fold=value.fold,
            )
            return to_nanoseconds(moment.astimezone(UTC))
    except Exception as error:  # out of range in UTC, or the tzinfo is user code
        problem = type(error).__qualname__
    if problem:
        raise PrefactorValueError(f"{name} cannot be converted to UTC ({problem})")
    raise PrefactorValueError(
        f"{name} needs a time zone, got {value!r}: use datetime.now(UTC), or .astimezone() of a "
        "local time"
    )


def check_end(name: str, end: int, what: str, start: int | None) -> None:
    """Raise :class:`PrefactorValueError` if ``end`` is before the ``start`` of ``what``, both in
    nanoseconds since 1970; ``start``: None if it has not started."""
    if start is not None and end < start:
        raise PrefactorValueError(
            f"{name} {to_datetime(end).isoformat()} is before the start of {what}, "
            f"{to_datetime(start).isoformat()}: give a later one, or none for now"
        )


def to_signals(name: str, value: object) -> tuple[signal.Signals, ...]:
    """Return signals that a program can handle."""
    if value == ():
        return ()
    import signal  # here: it takes time to import, and most programs do not need it

    signals: list[signal.Signals] = []
    wrong = value
    try:
        # A text would be its letters.
        for number in cast("Iterable[int]", 0 if isinstance(value, str) else value):
            wrong = number
            signals.append(signal.Signals(number))
    except (TypeError, ValueError):
        raise PrefactorValueError(
            f"{name} must be signals, such as (signal.SIGTERM,), got {in_message(wrong)}"
        ) from None
    for number in signals:
        if number.name in ("SIGKILL", "SIGSTOP"):
            raise PrefactorValueError(
                f"{name} must be signals that can be handled, got {in_message(number)}"
            )
    return tuple(signals)


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """Return a part of a message that names the known name nearest to a misspelled one, if any."""
    near = nearest(name, known)
    return f"; the nearest is {near!r}" if near else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that a misspelled one stands for; empty if none is near."""
    from difflib import get_close_matches  # here: only errors need it

    return "".join(get_close_matches(name[:_LONG_NAME], known, n=1, cutoff=_NEAR))


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise :class:`PrefactorValueError` if ``value`` is none of these texts."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise PrefactorValueError(
            f"{name} must be {', '.join(others)} or {last}, got {in_message(value)}"
        )


def check_flag(name: str, value: object) -> None:
    """Raise :class:`PrefactorValueError` if ``value`` is neither True nor False."""
    if not isinstance(value, bool):
        raise PrefactorValueError(f"{name} must be True or False, got {in_message(value)}")


def check_outcome(status: str, name: str = "status") -> None:
    """Raise :class:`PrefactorValueError` if this is no status of an end."""
    if not isinstance(status, str) or status not in OUTCOMES:
        raise PrefactorValueError(
            f"{name} must be one of {', '.join(sorted(OUTCOMES))}, got {in_message(status)}"
        )
