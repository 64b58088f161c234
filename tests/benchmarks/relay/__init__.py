"""``python -m benchmarks.relay``: what producers bring to Redis, and relays from there to the API.

``producing`` is a process that writes; ``processes`` starts them together, and reads their times.
"""
