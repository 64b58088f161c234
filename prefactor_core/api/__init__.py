"""The Prefactor HTTP API over httpx: one attempt per call, errors of our own."""
