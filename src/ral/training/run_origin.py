"""Writes what a run was started with, where no recipe says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.data.fingerprint import fingerprint
from ral.data.record import Record
from ral.runs.folder import write_origin


class RunOrigin(TrainerCallback):
    """Writes `config.yaml` and `environment.json` when training begins, so that `ral eval` and `ral report` find the settings.

    Args:
        task: what the settings do not hold, as a recipe names it, and settings as they were asked for; values of None are left out.
        records: the training data, whose fingerprint is kept.
    """

    def __init__(self, task: Mapping[str, Any], records: Sequence[Record] | None):
        self.task, self.records = task, records

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        config = {**self.task, **args.to_dict(), **self.task}  # the task's names first, and its values
        config = {key: value for key, value in config.items() if value is not None}
        data = None if self.records is None else fingerprint(self.records)
        write_origin(Path(str(args.output_dir)), config, data=data, processes=args.world_size)


def named(value: Any) -> Any:
    """A value as a recipe can name it: text, or a list of texts; None for what lies in memory."""
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Sequence) and value and all(isinstance(one, str) for one in value):
        return list(value)
    return None
