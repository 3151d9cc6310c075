"""The testbed's tasks, one for each set of `ral.testbed.sets`, on held-out records; they need no download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ral.data.record import Record
from ral.evaluate.tasks.task import Task
from ral.rewards.answers import Mode, same_text
from ral.testbed.sets import SETS


def named(answer: str, record: Record, mode: Mode) -> float:
    """Right or wrong by the text of the answer, up to case, outer punctuation and a leading article."""
    return float(same_text(answer, record.solution))


def embedded_task(name: str, n: int | None = None, seed: int = 0) -> Task:
    """The task of a testbed's set: `n` held-out records (None: the set's own number), the same for the same `seed` (≥ 0)."""
    one = SETS[name]

    def source(table: str | Path | None = None, media: Path | None = None) -> Iterator[Record]:
        yield from one.evaluated(n, seed)

    return Task(name, source, named, cluster=one.cluster, note=one.note)


def rings_task(n: int | None = None, seed: int = 0) -> Task:
    """The ring search on `n` held-out images (default 512)."""
    return embedded_task("rings", n, seed)
