"""The user's own data as a task: any file that training reads, scored as in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ral.data.readers import read_records
from ral.data.record import Record
from ral.evaluate.tasks.task import Task
from ral.rewards.answers import Mode, score_answer


def by_type(answer: str, record: Record, mode: Mode) -> float:
    """The accuracy reward of the record's own problem type; of several valid solutions the best counts."""
    return max(
        score_answer(answer, solution, record.problem_type, options=record.options, question=record.problem, mode=mode)
        for solution in record.solutions
    )


def own_task(data: str | Path, root: Path | None = None, split: str = "test", **reading: Any) -> Task:
    """The records of `data`, which `read_records` reads with media under `root`, as the task called like the file.

    `reading` holds further arguments of `read_records`.

    Reported by problem type; records about one image or video file are one cluster.
    """

    def source(table: str | Path | None = None, media: Path | None = None) -> Iterator[Record]:
        for record in read_records(table or data, root=media or root, split=split, **reading):
            first = next((medium for medium in (*record.images, *record.videos) if isinstance(medium, Path)), record.id)
            own = {"problem_type": record.problem_type, "medium": str(first)}
            yield replace(record, extra={**record.extra, **own})

    return Task(Path(data).stem, source, by_type, groups=("problem_type",), cluster="medium")
