"""The type `Format`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ral.data.fields import Fields
from ral.data.record import Record

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """`tells` says whether a row's fields are of this format; `read` makes its record, or raises `DataError`."""

    name: str
    tells: Callable[[Row], bool]
    read: Callable[[Fields], Record]
