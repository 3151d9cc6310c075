"""Writes records and their media in `ral`'s own format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ral.data.media import load_image
from ral.data.record import Record


class CleanCopy:
    """A folder with `data.jsonl` and `media/`, which `read_records` reads. Boxes are in pixels, whatever they were in."""

    def __init__(self, folder: Path):
        (folder / "media").mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = (folder / "data.jsonl").open("w", encoding="utf-8")

    def write(self, record: Record, digests: Sequence[str]) -> None:
        """Write a record; `digests` of its media, images first, name their files."""
        names = iter(digest[:20] for digest in digests)
        row: dict[str, Any] = {
            **record.extra,
            "id": record.id,
            "problem": record.problem,
            "solution": record.solutions if record.other_solutions else record.solution,
            "problem_type": record.problem_type,
            "options": record.options,
            "images": [self._keep(image, next(names)) for image in record.images],
            "videos": [self._keep(video, next(names)) for video in record.videos],
            "boxes": [asdict(box) for box in record.boxes],
            "trace": record.trace,
            "system": record.system,
            "history": [asdict(turn) for turn in record.history],
            **({"conversational": True} if record.conversational else {}),
        }
        self._file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    def _keep(self, medium: Path | Image.Image, name: str) -> str:
        suffix = medium.suffix if isinstance(medium, Path) else ".png"
        place = self.folder / "media" / (name + suffix)
        if not place.exists():
            if isinstance(medium, Path):
                _link(medium, place)
            else:
                load_image(medium).save(place)
        return f"media/{place.name}"

    def close(self) -> None:
        self._file.close()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
