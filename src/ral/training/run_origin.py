"""Writes what a run was started with, where no recipe says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.data.fingerprint import fingerprint
from ral.data.record import Record
from ral.runs.folder import claim


class RunOrigin(TrainerCallback):
    """Claims the output folder before anything is written to it, and writes `config.yaml` and `environment.json`.

    `ral eval` and `ral report` find the settings there. A folder that holds another run is refused; a resumed run keeps what it
    was started with.

    Args:
        records: the training data, whose fingerprint is kept.
        task: what the settings do not hold, and settings as they were asked for, by their keys in a recipe; only what has a
            name is kept.
    """

    def __init__(self, records: Sequence[Record] | None, **task: Any):
        self.records, self.task = records, {key: named(value) for key, value in task.items()}
        self._is_claimed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._claim(args, state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._claim(args, state)  # an evaluation before training is logged, too

    def _claim(self, args: TrainingArguments, state: TrainerState) -> None:
        if not state.is_world_process_zero or self._is_claimed:
            return
        config = {**self.task, **args.to_dict(), **self.task}  # the task's names first, and its values
        config = {key: value for key, value in config.items() if value is not None}
        data = None if self.records is None else fingerprint(self.records)
        resumed = state.global_step > 0
        claim(Path(str(args.output_dir)), config, data=data, processes=args.world_size, resumed=resumed)
        self._is_claimed = True


def named(value: Any) -> Any:
    """A value as a recipe can name it: text, numbers, lists and mappings of these; None for what lies in memory."""
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        found = {str(key): named(one) for key, one in value.items()}
        return None if None in found.values() else found or None
    if isinstance(value, Sequence):
        names = list(takewhile(lambda name: name is not None, map(named, value)))
        return names if names and len(names) == len(value) else None
    return None
