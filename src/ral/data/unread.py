"""Settings that nothing reads beside the others: what they ask for would silently not happen, so they are refused.

The class that declares a setting says when it is read, by a `Reader` under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ral.data.field_types import default_of
from ral.errors import ConfigError
from ral.runs.redaction import redacted


@dataclass(frozen=True)
class Reader:
    """What makes a run read a setting.

    Attributes:
        by: the names of the settings that decide it. reads: whether a run of these settings reads it.
        advice: what makes it read, as the end of "set …".
    """

    by: tuple[str, ...]
    reads: Callable[[Any], bool]
    advice: str


def chosen(name: str, values: Collection[Any]) -> Reader:
    """Read where the setting `name` has one of `values`."""
    return Reader((name,), lambda settings: getattr(settings, name) in values, f"{name} to {' or '.join(values)}")


def above_zero(name: str) -> Reader:
    """Read where the number `name` is above 0."""
    return Reader((name,), lambda settings: getattr(settings, name) > 0, f"{name} above 0")


def given(name: str, advice: str) -> Reader:
    """Read where the setting `name` is neither None nor off."""
    return Reader((name,), lambda settings: bool(getattr(settings, name)), advice)


def refuse_unread(settings: Any, readers: Mapping[str, tuple[Reader, ...]]) -> None:
    """Raise ConfigError for a setting that differs from its default and that nothing reads.

    Args:
        settings: a dataclass. readers: by the name of the setting; all of them must hold for it to be read.
    """
    defaults = {item.name: default_of(item) for item in fields(settings)}
    for name, needed in readers.items():
        if (value := getattr(settings, name)) == defaults[name]:
            continue
        for reader in needed:
            if not reader.reads(settings):
                why = " and ".join(f"{other}={getattr(settings, other)!r}" for other in reader.by)
                raise ConfigError(
                    redacted(f"{name}={value!r} does nothing with {why}; set {reader.advice}, or leave {name} out")
                )
