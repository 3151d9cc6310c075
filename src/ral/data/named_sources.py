"""The sources of data that a recipe names: paths, or objects that say how a source is read and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from ral.errors import DataError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source as a recipe names it: `path` alone, or an object with these keys.

    Attributes:
        path: a file, a folder, a hub id, or a set of the testbed.
        weight: this source's share of an epoch, against the weights of the others. None for all: every record once an epoch.
        max_records: read no more than the first n.
        data_root, columns, box_scale: as the recipe's keys of these names, for this source alone.
    """

    path: str
    weight: float | None = None
    max_records: int | None = None
    data_root: str | None = None
    columns: Mapping[str, Any] | None = None
    box_scale: Any = None

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `read_records` that it sets itself."""
        own = {"root": self.data_root, "columns": self.columns, "box_scale": self.box_scale}
        return {name: value for name, value in own.items() if value is not None}


def sources_of(data: Any) -> list[Source]:
    """The sources that `data` names: a text, an object with the keys of `Source`, or a list of both.

    Raises DataError for another value, an unknown key, a weight or a number of records that is not above 0.
    """
    return [_source(one) for one in (data if isinstance(data, list | tuple) else [data])]


def named_sets(data: Any) -> dict[str, list[Source]]:
    """Held-out sets by name: of an object that names several, or the one set that `data` is, called "".

    Raises DataError as `sources_of` does, and for a weight, which held-out data has none of.
    """
    several = isinstance(data, Mapping) and "path" not in data
    sets = {str(name): sources_of(one) for name, one in data.items()} if several else {"": sources_of(data)}
    for one in chain.from_iterable(sets.values()):
        if one.weight is not None:
            raise DataError(f"{one.path}: weight says how often training takes a source; leave it out of eval_data")
    return sets


def _source(given: Any) -> Source:
    if isinstance(given, str):
        return Source(path=given)
    if not isinstance(given, Mapping) or not isinstance(given.get("path"), str):
        raise DataError(f"data: expected a path, or an object with a path, got {given!r}")
    known = [item.name for item in fields(Source)]
    for key in given:
        if key not in known:
            advice = did_you_mean(str(key), known, f"known are {', '.join(known)}")
            raise DataError(f"data: {given['path']}: unknown key {key!r}; {advice}")
    for key, kind in (("weight", int | float), ("max_records", int)):
        if (value := given.get(key)) is not None and (
            isinstance(value, bool) or not isinstance(value, kind) or value <= 0
        ):
            raise DataError(f"data: {given['path']}: {key}: expected a number above 0, got {value!r}")
    return Source(**given)
