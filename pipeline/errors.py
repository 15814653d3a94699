"""The errors a user may see. Each message is one line: what was read, where, expected, found, what to do."""

from __future__ import annotations


class AqnetError(Exception):
    """Base of every error whose message is fit for the user; the command line prints it and exits 1."""


class ConfigError(AqnetError):
    """The configuration cannot be run; raised before any work."""


class InputError(AqnetError):
    """An input file, line, column or variable is not what was declared."""


class ProductError(AqnetError):
    """A product failed its contract and was not published."""
