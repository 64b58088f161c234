"""The configuration of a client, and the sources of its values.

Arguments, environment variables and configuration objects come in; checked structs go out. Read
``core`` first; ``http`` has the address, the token and the time-outs.
"""

from prefactor_core.config.core import (
    OnRefused,
    PrefactorCoreConfig,
    PrefactorOptions,
    QueueConfig,
    check_options,
)
from prefactor_core.config.http import HttpClientConfig

__all__ = [
    "HttpClientConfig",
    "OnRefused",
    "PrefactorCoreConfig",
    "PrefactorOptions",
    "QueueConfig",
    "check_options",
]
