"""A value becomes bounded, redacted JSON, once.

Payloads and results of any Python type come in; JSON bytes go out, without secrets and within
``max_payload_bytes``. Read ``capture`` first, then ``plain_json`` (the short way of plain values)
and ``jsonable`` (the long way of all others).
"""
