"""The version of the distribution, in the one place where it is written down."""

__version__ = "1.0.0.dev0"
