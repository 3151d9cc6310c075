"""Records from disk to the processor's tensors.

- `ours`: one after another, as a training step does. `ours+threads`: two at a time.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from PIL import Image

from benchmarks.cases import Case, Setting, build_case
from benchmarks.common import Arm
from ral.data.record import Record

THREADS = {"ours": 1, "ours+threads": 2}


def on_disk(record: Record, folder: Path) -> Record:
    """The record with its images as PNG files; videos are files already."""
    paths = []
    for i, image in enumerate(record.images):
        assert isinstance(image, Image.Image)
        paths.append(folder / f"{i}.png")
        image.save(paths[-1])
    return replace(record, images=tuple(paths))


def load(case: Case, records: list[Record], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(case.encode, records))


def build(setting: Setting, name: str) -> Arm:
    """One arm; its unit is the record."""
    case = build_case(setting)
    records = [on_disk(record, Path(tempfile.mkdtemp())) for record in case.records]
    return Arm(lambda: load(case, records, THREADS[name]), len(records), {"prompt_tokens": case.prompt_tokens})
