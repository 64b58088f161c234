"""The objects of an agent: its run, its spans, ``@traced``.

Calls of the agent come in, synchronous or awaited, in any thread. They go on to
:mod:`prefactor_core.recording`, and no error of the API comes back. Read ``span`` first, then
``instance`` (a run), ``scope`` (``async with client.agent_instance(...)``) and ``traced``;
``propagation`` writes the current step into the headers of a request.
"""
