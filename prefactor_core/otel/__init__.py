"""OpenTelemetry in: runs and spans of what OpenTelemetry instrumentations emit.

Spans of OpenTelemetry come in, in any thread; runs and spans of Prefactor go out, to
``recording/``. Read ``processor`` first, then ``foreign_span`` (a span of OpenTelemetry as a span
of Prefactor).
``reading`` collects what the attributes say, by the tables of one module for each dialect
(``gen_ai``, ``openinference``, ...); ``steps`` makes payload and result of that. Both are pure.

Needs the extra ``otel``.
"""

try:
    from prefactor_core.otel.processor import PrefactorSpanProcessor
except ImportError as error:
    raise ImportError(
        f"prefactor_core.otel needs the extra 'otel' of this package ({error}): "
        "pip install '.[otel]' in its folder"
    ) from None

__all__ = ["PrefactorSpanProcessor"]
