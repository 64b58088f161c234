"""What a client works with, and where each value comes from.

Arguments and environment variables come in, checked and immutable values go out. Read ``core``
first; ``http`` has the address, the token and the time-outs.
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
