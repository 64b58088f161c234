"""The Prefactor HTTP API over httpx: one attempt per call, errors mapped to our own.

Operations come in, requests go out; typed answers or errors come back. Read ``client`` first: it
encodes a request (``requests``, ``http_request``), sends it (``transport``), reads the answer
(``reading``, ``answers``) and raises the error in it (``errors``). Below ``transport``: ``network``
(connections), ``resolver`` (names), ``proxies`` and ``tls`` (the environment). ``quoting`` masks
the token in every text of an answer that is shown, ``log_mask`` in the logs of httpcore.
"""
