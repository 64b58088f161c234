"""A virtual environment for each system, because two systems import under one name."""

from __future__ import annotations

from support.environments import CHECKOUT, Environment

OURS = Environment(
    "bench", "ours", ("-e", str(CHECKOUT)), ("prefactor-core", "anyio", "httpx", "msgspec")
)
OFFICIAL_0_1_0 = Environment(
    "bench", "0.1.0", ("prefactor-core==0.1.0",), ("prefactor-core", "prefactor-http")
)
OFFICIAL_0_5_3 = Environment(
    "bench", "0.5.3", ("prefactor-core==0.5.3",), ("prefactor-core", "prefactor-http")
)
OPENTELEMETRY = Environment(
    "bench",
    "opentelemetry",
    ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
)

ENVIRONMENTS = (OURS, OFFICIAL_0_1_0, OFFICIAL_0_5_3, OPENTELEMETRY)
