"""What values a setting takes, by the type that its field declares."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields
from functools import cache
from inspect import get_annotations
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ral.errors import ConfigError
from ral.runs.redaction import redacted


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows; a choice counts as the type of its values."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in alternatives(part))
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    return (hint,)


def spelled(hint: Any) -> str:
    """A type as a recipe's author would say it."""
    names = {NoneType: "null", dict: "mapping", str: "text", bool: "true or false", list: "list"}
    kinds = (names.get(get_origin(kind) or kind, getattr(kind, "__name__", "value")) for kind in alternatives(hint))
    return " or ".join(dict.fromkeys(kinds))


def default_of(item: Field[Any]) -> Any:
    """The default of a dataclass field."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def check_values(settings: Any, kind: type, beyond: type = object) -> None:
    """Raise ConfigError for a value of another type than its field declares, and for a number that is not finite.

    Args:
        settings: a dataclass, an instance of `kind`. beyond: the base class of `kind` from which on fields are not ours to check.
    """
    own = _own_hints(kind, beyond)
    for item in fields(settings):
        value, default = getattr(settings, item.name), default_of(item)
        if item.name not in own or value is default or _fits(value, own[item.name]):
            continue
        infinite = isinstance(value, Real) and not math.isfinite(value) and float in alternatives(own[item.name])
        expected = "a finite number" if infinite else spelled(own[item.name])
        raise ConfigError(
            f"{item.name}={redacted(repr(value))}: expected {expected}; give one, or leave {item.name} out for its default, {default!r}"
        )


@cache
def _own_hints(kind: type, beyond: type) -> dict[str, Any]:
    """The types of all fields that `kind` declares or inherits before `beyond`."""
    classes = kind.__mro__[: kind.__mro__.index(beyond)]
    hints = get_type_hints(kind)
    return {name: hints[name] for one in classes for name in get_annotations(one)}


def _fits(value: Any, hint: Any) -> bool:
    return any(_is_one(value, kind) for kind in alternatives(hint))


def _is_one(value: Any, kind: Any) -> bool:
    """Whether a value is of this one type. A switch is no number, and a number is finite."""
    if kind is Any:
        return True
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real)
        return number and not isinstance(value, bool) and math.isfinite(value)
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(_fits(one, get_args(kind)[0]) for one in value)
    return isinstance(value, get_origin(kind) or kind)
