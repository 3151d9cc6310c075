"""Records where the model looks during training: it answers a few held-out records again and again.

looks/items.jsonl   one object per record and look: an item as in an evaluation, with the `step` after which it was taken
looks/media/        the images
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.data.record import Record
from ral.errors import ConfigError
from ral.evaluate.answering import answer, settled
from ral.evaluate.scoring import items_of
from ral.evaluate.settings import EvalSettings, parse_probes
from ral.evaluate.tasks import Task
from ral.evaluate.tasks.own import by_type
from ral.rollouts.sampling import evaluating
from ral.runs.folder import append_jsonl, truncate_after
from ral.runs.names import ITEMS, LOOKS


class LookRecorder(TrainerCallback):
    """Takes a look at each of `records` before the first update, after every `every`-th update, and after the last.

    A look is the most likely answer, its score, and the attention map of the row that predicts it, asked as in training.
    It draws no random number: training goes on as it would without. Of several processes all look, as sharded weights are
    used together, and the main one writes. On a resumed run, looks after the checkpoint are taken again.

    `probes` are further measures of looking (`ral.evaluate.probes`), separated by commas.

    Raises ConfigError without records, and unless `every` is at least 1; DataError for an unknown probe.
    """

    def __init__(self, records: Sequence[Record], every: int, probes: str = ""):
        if every < 1 or not records:
            raise ConfigError(f"every={every} with {len(records)} records: looks need a number of steps and a record")
        parse_probes(probes)
        self.records, self.every, self.probes = list(records), every, probes
        self.task = Task(LOOKS, lambda table, media: iter(self.records), by_type)
        self._taken: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            truncate_after(_folder(args) / ITEMS, state.global_step - 1)
        self._take(args, state, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._take(args, state, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._taken != state.global_step:
            self._take(args, state, **kwargs)

    def _take(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, processing_class: Any, **kwargs: Any
    ) -> None:
        settings = replace(settled(model, EvalSettings.of_config(vars(args))), probes=self.probes)
        folder = _folder(args) if state.is_world_process_zero else None
        shown = {record.id for record in self.records}
        with evaluating(model):
            answered = answer(model, processing_class, self.records, settings)
            step = state.global_step
            items = list(items_of(model, processing_class, self.task, answered, settings, shown, folder, step))
        if folder is not None:
            folder.mkdir(exist_ok=True)
            append_jsonl(folder / ITEMS, (item.to_json() for item in items))
        self._taken = state.global_step


def _folder(args: TrainingArguments) -> Path:
    return Path(str(args.output_dir)) / LOOKS
