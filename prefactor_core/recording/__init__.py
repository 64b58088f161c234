"""What is done to runs and spans becomes operations.

Calls from :mod:`prefactor_core.agent` come in, operations go out to :mod:`prefactor_core.export`.
"""
