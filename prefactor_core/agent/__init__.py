"""What an agent holds in its hands: a run, a span, ``@traced``.

Calls of the agent come in; they go on to :mod:`prefactor_core.recording`. Read ``span_context``
first.
"""
