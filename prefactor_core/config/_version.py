"""The version of the distribution, written down only here."""

__version__ = "1.0.0.dev0"
