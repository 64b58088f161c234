"""The headers ``traceparent`` and ``baggage``, as W3C defines them: read, and written.

``traceparent`` has the ids of a step in its trace (https://www.w3.org/TR/trace-context/). Two
members of ``baggage`` have the step's ids in Prefactor (https://www.w3.org/TR/baggage/):
``prefactor.run_id`` and, unless the step is the run itself, ``prefactor.span_id``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

from prefactor_core.exceptions.log import log
from prefactor_core.operations.cause import Cause
from prefactor_core.operations.identifiers import is_pfid
from prefactor_core.operations.trace_ids import span_id_of, trace_id_of

Headers: TypeAlias = (
    Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str | bytes, str | bytes]]
)
"""Headers that came with a request or a message: a mapping or pairs, of text or bytes."""

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"

MOST_MEMBERS: Final = 64
MOST_BYTES: Final = 8_192
"""What every receiver of a ``baggage`` passes on; it may cut a longer one."""

_RUN_ID, _SPAN_ID = "prefactor.run_id", "prefactor.span_id"
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})"
    r"-(?P<parent>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)

logger = logging.getLogger("prefactor_core.operations.trace_headers")


def new_traceparent(trace_id: str, parent_id: str, flags: str = "01") -> str:
    """Return the text of a ``traceparent``."""
    return f"00-{trace_id}-{parent_id}-{flags}"


def cause_of(headers: Headers) -> Cause | None:
    """The step that ``headers`` name, in whatever case; None without one.

    Malformed headers are ignored, with one line in the log.
    """
    try:
        traceparents, baggages = _values(headers, TRACEPARENT), _values(headers, BAGGAGE)
    except Exception as error:  # of the caller's own mapping, say
        message = "ignored the headers of the parent of a run: they cannot be read (%s)"
        log(logger, logging.INFO, message, type(error).__qualname__)
        return None
    malformed: list[str] = []
    traceparent = run_id = span_id = None
    if traceparents:
        traceparent = _read_traceparent(traceparents)
        if traceparent is None:
            malformed.append(TRACEPARENT)
    ids = {key: value for key, value, _ in _members(baggages) if key in (_RUN_ID, _SPAN_ID)}
    if ids:
        if _RUN_ID in ids and all(map(is_pfid, ids.values())):
            run_id, span_id = ids[_RUN_ID], ids.get(_SPAN_ID)
        else:
            malformed.append(BAGGAGE)
    if malformed:
        message = "ignored a malformed header of the parent of a run: %s"
        log(logger, logging.INFO, message, ", ".join(malformed))
    if traceparent is None:
        if run_id is None:
            return None
        traceparent = new_traceparent(trace_id_of(run_id), span_id_of(span_id or run_id))
    return Cause(traceparent=traceparent, run_id=run_id, span_id=span_id)


def write(headers: MutableMapping[str, str], cause: Cause, *, traceparent: bool = True) -> None:
    """Write ``cause`` into the headers of a request, in place of an earlier one.

    The ``baggage`` of others stays as it is; where ours would make it too long for W3C, ours is
    left out, and logged. ``traceparent``: False to leave that header as it is. A ``tracestate`` is
    removed with the trace that it belongs to.
    """
    if traceparent:
        before = [_read_traceparent([value]) for value in _values(headers, TRACEPARENT)]
        if any(each is None or each[3:35] != cause.trace_id for each in before):
            _remove(headers, TRACESTATE)
        _remove(headers, TRACEPARENT)
        headers[TRACEPARENT] = cause.traceparent
    members = [
        member
        for key, _, member in _members(_values(headers, BAGGAGE))
        if key not in (_RUN_ID, _SPAN_ID)
    ]
    own = [
        f"{key}={id}"
        for key, id in ((_RUN_ID, cause.run_id), (_SPAN_ID, cause.span_id))
        if id is not None
    ]
    if _fits([*members, *own]):
        members += own
    else:
        message = "wrote no ids of Prefactor into the baggage: that of others leaves no room"
        log(logger, logging.INFO, message)
    _remove(headers, BAGGAGE)
    if members:
        headers[BAGGAGE] = ",".join(members)


def _values(headers: Any, name: str) -> list[str]:
    """The values of the headers called ``name``."""
    found: list[str] = []
    # Headers of the standard library have items(), and are no Mapping.
    items = headers.items() if hasattr(headers, "items") else headers
    for key, value in items:
        if isinstance(key, str | bytes) and _text(key).lower() == name:
            found.append(_text(value))
    return found


def _remove(headers: MutableMapping[str, str], name: str) -> None:
    for key in [key for key in headers if key.lower() == name]:
        headers.pop(key, None)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, str):
        return value
    raise TypeError(f"a header must be text, got {type(value).__qualname__}")


def _read_traceparent(values: list[str]) -> str | None:
    """The ``traceparent`` in the form of version 00; None for a malformed one, or several."""
    match = _TRACEPARENT.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None or (match["version"] == "00" and match["more"]):
        return None
    sampled = int(match["flags"], 16) & 1
    return new_traceparent(match["trace"], match["parent"], f"{sampled:02}")


def _members(baggages: list[str]) -> Iterator[tuple[str, str, str]]:
    """The members of ``baggage`` headers: key, value without properties, and the whole text."""
    for text in ",".join(baggages).split(","):
        if member := text.strip():
            key, _, rest = member.partition("=")
            yield key.strip(), rest.partition(";")[0].strip(), member


def _fits(members: list[str]) -> bool:
    size = len(",".join(members).encode("utf-8", "replace"))
    return len(members) <= MOST_MEMBERS and size <= MOST_BYTES
