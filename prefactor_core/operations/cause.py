"""Cause: the step elsewhere that caused a run, and its place in the payloads of the run. Pure."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

FIELD: Final = "prefactor_caused_by"
"""The field of a payload that holds the cause of the run."""

_TRACEPARENT = r"\A00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
_PFID = r"\A[0-7][0-9abcdefghjkmnpqrstvwxyz]{31}\Z"
_KEY: Final = f'"{FIELD}":'.encode()


class Cause(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A step of another process, or of another run.

    ``run_id``, ``span_id``: the step in Prefactor, PFIDs; without ``span_id`` the run itself, and
    without both a step that Prefactor has not recorded, or not yet.
    ``traceparent``: the same step, or one between it and the run, as W3C writes it.
    """

    run_id: Annotated[str, Meta(pattern=_PFID)] | None = None
    span_id: Annotated[str, Meta(pattern=_PFID)] | None = None
    traceparent: Annotated[str, Meta(pattern=_TRACEPARENT)]

    @property
    def trace_id(self) -> str:
        """The id of the trace: 32 hexadecimal digits."""
        return self.traceparent[3:35]

    @property
    def parent_id(self) -> str:
        """The id of the step in its trace: 16 hexadecimal digits."""
        return self.traceparent[36:52]

    @property
    def flags(self) -> str:
        """The flags of the trace: ``01`` if it is sampled, else ``00``."""
        return self.traceparent[53:]

    def added_to(self, payload: Raw) -> Raw:
        """Return a captured payload, a JSON object, with this cause as its last field.

        A payload that has such a field, copied from another span perhaps, stays as it is.
        """
        content = bytes(payload)
        if _KEY in content:
            return payload
        comma = b"" if content == b"{}" else b","
        return Raw(b"".join((content[:-1], comma, _KEY, msgspec.json.encode(self), b"}")))


class _Payload(Struct):
    prefactor_caused_by: Cause | None = None


_decoder = msgspec.json.Decoder(_Payload)


def cause_in(payload: Raw) -> Cause | None:
    """The cause that :meth:`Cause.added_to` wrote into a payload; None without a valid one."""
    # A search first: most payloads have none, and decoding takes longer.
    if _KEY not in bytes(payload):
        return None
    try:
        return _decoder.decode(payload).prefactor_caused_by
    except (msgspec.DecodeError, RecursionError):
        return None
