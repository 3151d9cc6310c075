"""A fingerprint that tells sets of training data apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ral.data.mixture import Mixture
from ral.data.record import Record


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 over records in their order: everything that training sees of them.

    Of a mixture the weights count, too. Images in memory count with their pixels; files with their name and size, so that data may move to another folder.
    """
    digest = hashlib.sha256()
    if isinstance(records, Mixture):
        digest.update(json.dumps(records.parts).encode())
    for record in records:
        media = [_medium(medium) for medium in (*record.images, *record.videos)]
        seen = {**record.columns(), "problem": record.problem, "trace": record.trace, "media": media}
        # What few records have counts where it is there: the data of earlier runs keeps its fingerprint.
        del seen["solutions"]
        rare = {name: getattr(record, name) for name in ("system", "history", "other_solutions")}
        seen |= {name: value for name, value in rare.items() if value}
        digest.update(json.dumps(seen, sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def _medium(medium: Path | Image.Image) -> Any:
    if isinstance(medium, Image.Image):
        return [medium.mode, medium.size, hashlib.sha256(medium.tobytes()).hexdigest()]
    # A missing file is refused where it is decoded, with the record's place.
    return [medium.name, medium.stat().st_size if medium.exists() else None]


def _plain(value: Any) -> Any:
    """A value of a user's column that JSON does not know: by its contents if they can be told, else by its type."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return getattr(value, "__dict__", type(value).__name__)
