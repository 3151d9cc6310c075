"""Records from disk to the processor's tensors.

- `ours`: one after another, as a training step does without workers. `ours+threads`: two at a time.
- `ours+workers`: by two processes that start with each run, as `dataloader_num_workers: 2` starts them with each epoch. The process that
  is timed only takes the tensors over, which in training leaves it to the GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.cases import Case, Setting, build_case
from benchmarks.common import Arm
from ral.data.loading import PromptData, encoded
from ral.data.record import Record
from ral.data.settings import PromptSettings


def on_disk(record: Record, folder: Path) -> Record:
    """The record with its images as PNG files; videos are files already."""
    paths = []
    for i, image in enumerate(record.images):
        assert isinstance(image, Image.Image)
        paths.append(folder / f"{i}.png")
        image.save(paths[-1])
    return replace(record, images=tuple(paths))


def in_threads(case: Case, records: list[Record], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(case.encode, records))


def in_workers(case: Case, records: list[Record]) -> None:
    setting = case.setting
    prompts = PromptSettings(think=setting.think, max_pixels=setting.image_size**2, num_frames=setting.frames or None)
    for _ in encoded(PromptData(records, case.processor, prompts), range(len(records)), workers=2):
        pass


WAYS: dict[str, Callable[[Case, list[Record]], None]] = {
    "ours": partial(in_threads, threads=1),
    "ours+threads": partial(in_threads, threads=2),
    "ours+workers": in_workers,
}


def build(setting: Setting, name: str) -> Arm:
    """One arm; its unit is the record."""
    case = build_case(setting)
    records = [on_disk(record, Path(tempfile.mkdtemp())) for record in case.records]
    return Arm(lambda: WAYS[name](case, records), len(records), {"prompt_tokens": case.prompt_tokens})
