"""A value becomes bounded, redacted JSON, once.

Values of any kind come in, JSON bytes go out. Read ``capture`` first.
"""
