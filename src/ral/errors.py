"""Errors that a user can fix. The command line prints them as one line, and any other exception as a traceback.

This module holds the kinds that several rooms raise. If only one module raises a kind, that module defines it and derives it from one
of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class RalError(Exception):
    """The base class of these errors. The message says what was expected and what to do."""


class ConfigError(RalError, ValueError):
    """A setting that cannot work, or a model that does not fit it; the message names both and what to change."""


class DataError(RalError, ValueError):
    """A file or a record that cannot be used; the message names it, the field, what was expected and what to do."""


class UsageError(RalError, ValueError):
    """Arguments of a command or a function that cannot be used, or not together."""


class RunError(RalError, ValueError):
    """A folder without the expected run, checkpoint or dump, or with one that is in the way."""


class WorkerError(RalError, RuntimeError):
    """A helper process died or does not start; the message names it and says what to do."""


class MissingPackageError(RalError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


def did_you_mean(given: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown name: the known one that is spelt most like it, or `otherwise` if none is."""
    near = get_close_matches(given, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


@contextmanager
def refused_by(library: str, what: object) -> Iterator[None]:
    """Raises ConfigError in place of what `library` raises, anywhere in it, about `what` the user gave.

    Put only calls of that library into it; otherwise a bug in `ral` would look like the user's mistake.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, RalError):
            raise
        raise ConfigError(f"{what}: {library} refuses it ({error})") from error
