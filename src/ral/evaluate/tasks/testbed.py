"""The testbed's tasks, which need no download: ring search, episodes and needle search, with known evidence, and easy-vqa."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ral.data.record import Record
from ral.evaluate.tasks.task import Task
from ral.rewards.answers import Mode, same_text
from ral.testbed.easy_vqa import easy_vqa_records
from ral.testbed.episodes import episode_records, told_records
from ral.testbed.needles import needle_records
from ral.testbed.rings import ring_records

#: Held-out items of the ring search, of the episodes, and of the needle search, when no number is asked for.
RINGS, EPISODES, NEEDLES = 512, 256, 512


def named(answer: str, record: Record, mode: Mode) -> float:
    """Right or wrong by the text of the answer, up to case, outer punctuation and a leading article."""
    return float(same_text(answer, record.solution))


def _drawn(name: str, draw: Callable[[int, int], Iterable[Record]], n: int, seed: int) -> Task:
    """A task whose `n` items are drawn by a generator of the testbed, with a seed that training never uses."""

    def source(table: str | Path | None = None, media: Path | None = None) -> Iterator[Record]:
        yield from draw(n, -1 - seed)

    return Task(name, source, named)


def rings_task(n: int | None = None, seed: int = 0) -> Task:
    """Ring search on `n` held-out images (default 512), the same for the same `seed` (≥ 0).

    Training draws its images with seeds from 0 upwards, so held-out ones have the seeds below 0.
    """
    return _drawn("rings", ring_records, RINGS if n is None else n, seed)


def episodes_task(n: int | None = None, seed: int = 0) -> Task:
    """Questions about `n` held-out videos (default 256), with seeds as in `rings_task`."""
    return _drawn("episodes", episode_records, EPISODES if n is None else n, seed)


def told_task(n: int | None = None, seed: int = 0) -> Task:
    """The questions of `episodes_task` about the same episodes in words: what of them is not a matter of seeing."""
    return _drawn("told", told_records, EPISODES if n is None else n, seed)


def needles_task(n: int | None = None, seed: int = 0) -> Task:
    """Needle search in `n` held-out texts (default 512), with seeds as in `rings_task`."""
    return _drawn("needles", needle_records, NEEDLES if n is None else n, seed)


def easy_vqa_task(n: int | None = None, seed: int = 0) -> Task:
    """easy-vqa's test split: all 9,673 questions, or `n` of them drawn with `seed`; questions about one image are one cluster."""

    def source(table: str | Path | None = None, media: Path | None = None) -> Iterator[Record]:
        for record in easy_vqa_records("test", n, seed):
            image = Path(str(record.images[0]))
            yield replace(record, extra={"image": image.stem})

    return Task("easy-vqa", source, named, cluster="image", note="about 74 % of the questions are yes or no")
