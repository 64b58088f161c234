"""Import path of prefactor-core 0.5.3, the one reason for this name; the code is in
:mod:`prefactor_core.operations.identifiers` and :mod:`prefactor_core.compat.adapters`.
"""

from prefactor_core.compat.adapters import warn_missing_adaptor_config
from prefactor_core.operations.identifiers import generate_idempotency_key, validate_idempotency_key

__all__ = ["generate_idempotency_key", "validate_idempotency_key", "warn_missing_adaptor_config"]
