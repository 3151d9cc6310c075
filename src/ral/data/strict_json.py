"""Strict JSON: a repeated key is an error."""

from __future__ import annotations

import json
from typing import Any


class RepeatedKey(Exception):
    """An object has a key twice. Not a ValueError, which means that the text is no JSON."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKey(f"the key {twice!r} stands twice in one object")
    return found


#: Raises `RepeatedKey`, ValueError for what is no JSON, and RecursionError for what is too deep.
STRICT = json.JSONDecoder(object_pairs_hook=_unique)
#: The same without the check, to find the end of what has a key twice.
LENIENT = json.JSONDecoder()
