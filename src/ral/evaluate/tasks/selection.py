"""Finds a task by name and binds its data: the location, and the number of items."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ral.data.record import BoxScale, Record
from ral.errors import DataError, did_you_mean
from ral.evaluate.tasks import BENCHMARKS
from ral.evaluate.tasks.own import own_task
from ral.evaluate.tasks.task import Task
from ral.evaluate.tasks.testbed import embedded_task
from ral.testbed.sets import SETS


def find_task(
    name: str,
    *,
    n: int | None = None,
    seed: int = 0,
    data: str | Path | None = None,
    media: Path | None = None,
    columns: Mapping[str, Any] | None = None,
    box_scale: BoxScale | None = None,
) -> Task:
    """The task called `name` with `n` items (default: all), drawn with `seed` and kept in their order.

    Where no task has that name it may be a file or folder of one's own data, see `own_task`, which `columns` and `box_scale` say
    how to read (`read_records`). `data` and `media` are a benchmark's table and its folder of media where they lie on this
    machine, see `Task.records`.

    Raises `DataError` for an unknown name, with the nearest known one, for `n` < 1, and for `data` of a testbed task or
    of a file.
    """
    if n is not None and n < 1:
        raise DataError(f"n={n}: evaluate on at least one item")
    if name in SETS:
        if data is not None or media is not None:
            raise DataError(f"{name} is made by this package; evaluate on it without data and media")
        return embedded_task(name, n, seed)
    if name not in BENCHMARKS and Path(name).exists():
        if data is not None:
            raise DataError(f"{name} is a file already; leave out data, which says where a benchmark lies")
        task = own_task(name, columns=columns, box_scale=box_scale)
    elif name in BENCHMARKS:
        task = BENCHMARKS[name]
    else:
        known = (*SETS, *BENCHMARKS)
        advice = did_you_mean(name, known, f"known are {', '.join(known)}")
        raise DataError(f"no task is called {name!r}, nor is there such a file; {advice}")

    def source(table: str | Path | None = None, folder: Path | None = None) -> Iterator[Record]:
        records = list(task.records(table or data, folder or media))
        kept = range(len(records)) if n is None or n >= len(records) else sorted(_draw(len(records), n, seed))
        yield from (records[i] for i in kept)

    return replace(task, source=source)


def _draw(total: int, n: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(total), n)
