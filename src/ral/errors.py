"""Errors that a user can mend: the command line shows them as one line, and anything else as a traceback."""

from __future__ import annotations


class RalError(Exception):
    """The base of all of them. The message says what was expected and what to do."""


class ConfigError(RalError, ValueError):
    """A setting that cannot work; the message names it and what to change."""
