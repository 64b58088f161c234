"""tls_context: the certificates to verify servers with, read once for all clients."""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from pathlib import Path
from typing import Final

import httpx

from prefactor_core.exceptions import PrefactorValueError

_MOST: Final = 4
_contexts: OrderedDict[tuple[object, ...], ssl.SSLContext] = OrderedDict()


def tls_context() -> ssl.SSLContext:
    """A context with the certificates of ``SSL_CERT_FILE``, else of ``SSL_CERT_DIR``, else of
    the package certifi; cached while these are unchanged.

    Making one takes 20 to 100 ms. Call it in one thread only.

    Raises :class:`PrefactorValueError`, which names the variable, for unreadable certificates.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    version: tuple[int, ...] = ()
    if file:
        try:
            status = Path(file).stat()
        except (OSError, ValueError) as error:
            raise _unreadable("SSL_CERT_FILE", file, error) from None
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
    elif folder and not any(Path(part).is_dir() for part in folder.split(os.pathsep)):
        raise _unreadable("SSL_CERT_DIR", folder, "no such folder")
    key = (file or None, folder or None, version)
    context = _contexts.get(key)
    if context is None:
        try:
            context = httpx.create_ssl_context()
        except (OSError, ValueError) as error:
            variable = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
            raise _unreadable(variable, file or folder or "", error) from None
        _contexts[key] = context
        if len(_contexts) > _MOST:
            _contexts.popitem(last=False)
    _contexts.move_to_end(key)
    return context


def _unreadable(variable: str, value: str, problem: object) -> PrefactorValueError:
    return PrefactorValueError(
        f"{variable} is {value!r}, where no certificates can be read ({problem}): name a file or "
        "folder that has some, or unset it to use those of the package certifi"
    )
