"""The Prefactor HTTP API over httpx: one attempt per call, errors of our own.

Operations come in, typed answers or errors of ours go out. Read ``client`` first: it writes a
request (``requests``), sends it by ``transport``, reads the answer (``reading``, ``answers``) and
raises what that says (``errors``). Below ``transport``: ``network`` (connections), ``resolver``
(names), ``proxies`` and ``tls`` (the environment). What is shown of an answer goes through
``quoting``; ``log_mask`` does it for the logs of httpcore.
"""
