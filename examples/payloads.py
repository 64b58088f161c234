"""Payloads: what becomes of a value, and how secrets stay out.

    python examples/payloads.py

A payload or result is a mapping or an object with fields; anything else is recorded as its
``value``. It is read once: on entering, at ``start()``, or at the end. Later changes of your
objects do not matter, and your objects stay as they are. A value that JSON cannot hold never
raises, and changes nothing beside it:

==========================================  =====================================================
value                                       becomes
==========================================  =====================================================
mapping; dataclass, attrs class, msgspec    object, fields by name; fields that the class keeps
struct (also ``array_like``), pydantic      out of its ``repr`` are ``"[redacted]"``
model (1 and 2), named tuple, numpy
record, namespace
exception                                   object with ``type`` and ``message``
list, tuple, set, deque, dict view,         list
``array``
numpy array                                 lists; ``"<numpy.ndarray float64 (1000, 2000)>"`` if
                                            they do not fit
subclass of ``str``, ``int``, ``float``;    text or number; NaN and infinity are null
``Enum``; numpy number
date, time, ``timedelta``, ``Decimal``,     text, in ISO 8601; NaT and NA of pandas are null
``UUID``, path
bytes                                       base64; text as a key, or as the name of a header
key that is not text                        text; of two keys that become equal, one gets the
                                            name of its type: ``"1"`` and ``"1 (int)"``
wrapt proxy                                 the object that it wraps
object of a mapped class (SQLAlchemy,       ``"<shop.models.Order>"``: no iterator is used up, no
Django); anything else that can be          query is made; fields of a mapped dataclass that are
iterated over (query, iterator, table)      not loaded are ``"<not loaded>"``
anything else                               its ``repr``, at most 1,000 characters
circular; more than 32 levels deep; with    ``"<circular>"``, ``"<too deep>"``, ``"<unprintable
code that raises, or that is slow           Order>"``, ``"<slow Order>"``
==========================================  =====================================================

Code of your values, such as a ``repr`` or ``model_dump``, runs in a helper thread. It is given up
after a wait of 6 ms or 50 ms of computing; a whole payload may compute for 250 ms.

A payload has at most ``max_payload_bytes`` of JSON (500,000 by default). The largest texts of a
larger one are cut, and end with how much is missing. If that is not enough,
``{"$truncated": {"bytes": ...}}`` stands for its largest parts, or for all of it.
Long messages, stack traces, chains of causes and groups of exceptions are cut in the middle.
``statistics().degraded`` counts the payloads that are not recorded whole, by reason, and the log
warns at the first, second, fourth time and so on.

``redact=`` sees each payload and each error before anything of it is queued or written:

* ``redact_keys()``, the default, puts ``"[redacted]"`` in place of everything under a usual name
  of a secret (``SECRETS``): passwords, keys, tokens, cookies, database addresses, ``session_id``;
  but not ``max_tokens`` or ``chat_session_id``. It looks at keys, at the first item of a pair
  (``["Authorization", "Bearer ..."]``), and at a ``name`` or ``key`` beside a ``value``.
  ``accessToken``, ``access-token`` and ``ACCESS_TOKEN`` are one name; ``*`` and ``?`` stand for
  any text and any character. ``redact_keys("ssn", *SECRETS)`` adds a name of yours.
* ``redact_credentials()`` does the same, and looks inside of texts: what follows ``Bearer``,
  private keys, JSON Web Tokens, passwords in URLs, and tokens with a known beginning (``sk-...``,
  ``ghp_...``). The text around them stays. ``redact_credentials(redact_keys("ssn", *SECRETS))``
  combines both.
* A function of your own gets the decoded payload, a ``dict`` that it may change, and returns what
  is recorded. If it raises, ``{"$withheld": ...}`` is recorded instead.
* ``None`` records everything as it is, except the API token, which is in no payload.

``capture_payloads=False`` records what happened and when, without any payload, and only the type
of an error. ``sensitive(value, *labels)`` (see ``typed_steps.py``) is the opposite of redaction:
the value is recorded, and marked with its data categories, so that Prefactor decides who sees it.
The command line shows the categories in its place.
"""

from __future__ import annotations

import json
import logging
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

import anyio

from prefactor_core import SECRETS, redact_credentials, redact_keys
from prefactor_core.testing import open_recording


@dataclass
class Account:
    owner: str
    ssn: str
    balance: Decimal
    key: str = field(repr=False)


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


async def main() -> None:
    account = Account("Ada", "078-05-1120", Decimal("9.50"), key="k-3141")
    payload = {
        "account": account,
        "when": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "id": uuid.UUID(int=7),
        "scores": (1.5, float("nan")),
        "headers": [["Authorization", "Bearer s3cr3t-of-the-user"]],
        "note": "call https://ada:pa55word@example.com/ first",
        "broken": Broken(),
        "long": "x" * 3_000,
    }
    redact = redact_credentials(redact_keys("ssn", *SECRETS))
    with open_recording() as recording:  # a Prefactor in memory, to show what arrives there
        async with recording.open(redact=redact, max_payload_bytes=2_000) as client:
            async with client.agent_instance("payloads", {"name": "Payloads"}) as instance:
                async with instance.span("agent:tool", payload=payload):
                    account.owner = "Eve"  # too late: the payload has been read
        stored = recording.run.named("agent:tool").payload
        print(json.dumps({**stored, "long": stored["long"][-40:]}, indent=2, ensure_ascii=False))
        print("not recorded whole:", client.statistics().degraded)
    text = json.dumps(stored)
    assert stored["account"]["owner"] == "Ada"
    for secret in ("078-05", "k-3141", "s3cr3t", "pa55word"):
        assert secret not in text
    print("nothing of it leaked")


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="log of %(name)s: %(message)s")
    anyio.run(main)
