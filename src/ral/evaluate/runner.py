"""Evaluates a model on a task, item by item, into a folder that can be resumed.

settings.json   what is evaluated how; a folder that says otherwise is not continued
items.jsonl     one object per item, appended batch by batch; in the order of the task once complete
media/          images of the items that are shown
summary.json    the figures over all items; its presence says that the evaluation is complete
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from ral.attention.models import pretrained
from ral.data.record import Record
from ral.data.record_errors import watched
from ral.errors import DataError
from ral.evaluate.answering import answers, settled
from ral.evaluate.folder import claim, identity, read_begun, remove
from ral.evaluate.items import Item
from ral.evaluate.scoring import items_of
from ral.evaluate.settings import EvalSettings
from ral.evaluate.summary import Summary, summarise
from ral.evaluate.tasks import Task
from ral.files import atomic_write_text, json_line
from ral.runs.names import ITEMS, SUMMARY

#: Batches' worth of records that are answered in one go: prompts enter as others end, and the batch runs empty at the end. Where
#: an evaluation was cut off, it begins again with the stretch that it was in.
STRETCH = 8


@watched()
def evaluate(
    model: nn.Module,
    processor: Any,
    task: Task,
    output: str | Path,
    *,
    settings: EvalSettings | None = None,
    name: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    overwrite: bool = False,
    progress: Callable[..., object] = lambda completed, total: None,
) -> Summary:
    """Answer every record of `task` greedily, score it, see where the model looked, and write all of it to `output`.

    A folder in which the same evaluation was cut off is continued; items that are there already are kept. The model is
    put into evaluation mode.

    Args:
        name: what the summary calls the model; its folder or hub id if not given.
        batch_size: items generated together, the next ones entering as others end. It bounds the memory; predictions do not
            depend on it but for rounding.
        num_workers: processes that decode media beside the model.
        overwrite: replace an evaluation that `output` holds.
        progress: called with `completed`, the items done, and their `total`, after every batch.

    Raises:
        DataError: records that cannot be used, two with one id, or a folder that holds another evaluation.
        ConfigError: a layer or a head that the model does not have.
        WorkerError: a process that decodes media died; the error names its record.
    """
    output, settings = Path(output), settings or EvalSettings()
    records = _records(task)
    model.eval()
    settings = settled(model, settings)
    if overwrite:
        remove(output)
    claim(output, identity(model, task.name, records, settings))
    done = read_begun(output / ITEMS)
    shown = {records[i * len(records) // settings.show].id for i in range(settings.show)}
    progress(completed=len(done), total=len(records))
    with open(output / ITEMS, "a", encoding="utf-8") as stream:
        for stretch in _stretches(records, batch_size * STRETCH, done):
            ended = (one for _, one in answers(model, processor, stretch, settings, batch_size, num_workers))
            while answered := list(islice(ended, batch_size)):
                for item in items_of(model, processor, task, answered, settings, shown, output):
                    # A stretch that was cut off is repeated whole, as its rounding depends on it.
                    if item.id not in done:
                        done[item.id] = item
                        stream.write(json_line(item.to_json()))
                stream.flush()
                progress(completed=len(done), total=len(records))
    items = [done[record.id] for record in records]
    atomic_write_text(output / ITEMS, "".join(json_line(item.to_json()) for item in items))
    summary = summarise(name or str(pretrained(model).name_or_path), task, records, items, settings)
    atomic_write_text(output / SUMMARY, json_line(summary.as_dict()))
    return summary


def _records(task: Task) -> list[Record]:
    """All of a task's records. Raises DataError if there are none, or two with one id."""
    records = list(task.records())
    if not records:
        raise DataError(f"{task.name}: the task has no records to evaluate on")
    seen: dict[str, Record] = {}
    for record in records:
        if record.id in seen:
            raise DataError(f"{record.origin}: has the id {record.id!r} of {seen[record.id].origin}; ids must differ")
        seen[record.id] = record
    return records


def _stretches(records: Sequence[Record], size: int, done: dict[str, Item]) -> Iterator[Sequence[Record]]:
    """Consecutive records, `size` at a time; those with all items in `done` are left out.

    Which records are in a stretch does not depend on `done`: a resumed evaluation computes what an uninterrupted one does.
    """
    for start in range(0, len(records), size):
        stretch = records[start : start + size]
        if not all(record.id in done for record in stretch):
            yield stretch
