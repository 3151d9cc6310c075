"""Held-out records while training: answers to them, their metrics, and what is refused before the first step."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput, SaveStrategy

from ral.attention import Prompt
from ral.config import RALConfig
from ral.data.loading import PromptData, encoded
from ral.data.readers import as_records
from ral.data.record import Record
from ral.errors import ConfigError, UsageError
from ral.objective.terms import Mean
from ral.rewards.functions import RewardFunction
from ral.rewards.solutions import reads_solutions
from ral.rollouts.engine import Engine, most_likely
from ral.rollouts.sampling import Sampling
from ral.training.running_means import RunningMeans
from ral.training.scoring import Scorer

#: What holds data: a path or hub id, a `datasets.Dataset`, rows of a known format, or `Record`s.
Rows = str | Path | Iterable[Mapping[str, Any] | Record]
#: The records of one held-out set, or of several by name.
Sets = list[Record] | dict[str, list[Record]]
#: transformers' `compute_metrics`: texts of the model as `predictions`, solutions as `label_ids`, records as `inputs`.
ComputeMetrics = Callable[[EvalPrediction], Mapping[str, float]]

#: Arguments of transformers' Trainer that would do nothing here.
UNUSED = {
    "data_collator": "prompts are made of records one by one",
    "compute_loss_func": "the loss is that of the settings; a new term belongs to `ral.objective`",
    "preprocess_logits_for_metrics": "held-out records are answered in words; compute_metrics gets the texts",
    "model_init": "the model is given as `model`",
}


def refuse_unused(arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of transformers' Trainer that would do nothing."""
    for name, reason in UNUSED.items():
        if arguments.get(name) is not None:
            raise UsageError(f"{name} would do nothing in RALTrainer: {reason}; leave it out")


def as_sets(
    data: Rows | Mapping[str, Rows] | None, name: str = "eval_dataset", *, needs_solution: bool = True
) -> Sets | None:
    """Read one held-out set, or several by name (a dictionary, a `datasets.DatasetDict`); see `as_records`.

    Raises DataError as `as_records` does, and UsageError for a name that cannot stand in a metric's.
    """
    if data is None:
        return None
    if not isinstance(data, Mapping):
        return as_records(data, name=name, needs_solution=needs_solution)
    if odd := [key for key in data if not re.fullmatch(r"[\w.-]+", str(key))]:
        raise UsageError(f"{name}: {odd[0]!r} cannot name a set of records; use letters, digits, '_', '-' and '.'")
    return {
        str(key): as_records(rows, name=f"{name}[{key!r}]", needs_solution=needs_solution) for key, rows in data.items()
    }


def as_data(
    train: Rows | None, held_out: Rows | Mapping[str, Rows] | None, rewards: Sequence[str | RewardFunction] | None
) -> tuple[list[Record] | None, Sets | None]:
    """Training and held-out records; rows need a solution if one of `rewards` reads it."""
    needed = reads_solutions(rewards)
    training = None if train is None else as_records(train, name="train_dataset", needs_solution=needed)
    return training, as_sets(held_out, needs_solution=needed)


def flat(sets: Sets | None) -> list[Record]:
    """The records of all sets, a record of each in turn."""
    if not isinstance(sets, dict):
        return sets or []
    return [record for row in zip_longest(*sets.values()) for record in row if record is not None]


def refuse_unknown_metric(args: RALConfig, sets: Sets | None, scorer: Scorer, compute: ComputeMetrics | None) -> None:
    """Raise ConfigError if no evaluation measures what the best model is chosen by.

    `compute` may add metrics whose names are not known yet: it is then taken at its word.
    """
    if not (args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST) or sets is None:
        return
    wanted = str(args.metric_for_best_model).removeprefix("eval_")
    names = ["reward", *(f"reward/{reward.name}" for reward in scorer.rewards), "completion_length", "scorer_failed"]
    known = [f"{key}_{name}" for key in sets for name in names] if isinstance(sets, dict) else names
    of_own = compute is not None and (not isinstance(sets, dict) or wanted.startswith(tuple(f"{key}_" for key in sets)))
    if wanted not in known and not of_own:
        raise ConfigError(
            f"metric_for_best_model={wanted!r} is not measured on the held-out records; choose one of {', '.join(known)}"
        )


@dataclass(frozen=True)
class Answers:
    """The most likely answers to held-out records, in their order, of all processes.

    Attributes:
        texts: the model's turns. metrics: means of rewards and lengths, and what `compute_metrics` gave.
    """

    records: Sequence[Record]
    texts: list[str]
    metrics: dict[str, float]

    def measured(self, compute: ComputeMetrics | None, prefix: str) -> Answers:
        """With the metrics of `compute`, and every metric's name behind `prefix`.

        Raises UsageError for a result that is no dictionary of new numbers.
        """
        metrics = dict(self.metrics)
        if compute is not None:
            texts, solutions, _ = self.output()
            found = compute(EvalPrediction(texts, solutions, inputs=self.records))  # type: ignore[arg-type]
            if not isinstance(found, Mapping):
                kind = type(found).__name__
                raise UsageError(f"compute_metrics returned {kind}; expected a dictionary of numbers by name")
            for name, value in found.items():
                if name in metrics:
                    raise UsageError(
                        f"compute_metrics returned {name!r}, which is measured already; choose another name"
                    )
                if not isinstance(value, numbers.Real):
                    raise UsageError(f"compute_metrics returned {name!r}: {value!r}; expected a number")
                metrics[str(name)] = float(value)
        return replace(self, metrics={f"{prefix}_{name}": value for name, value in metrics.items()})

    def output(self) -> PredictionOutput:
        """transformers' form: the texts as predictions, the solutions as labels."""
        solutions = [record.solution for record in self.records]
        return PredictionOutput(self.texts, solutions, self.metrics)  # type: ignore[arg-type]


def answer_records(
    records: Sequence[Record],
    engine: Engine,
    scorer: Scorer,
    sampling: Sampling,
    prepare: Callable[[Record, dict[str, Tensor]], Prompt],
    accelerator: Accelerator,
    step: int,
) -> Answers:
    """The most likely completion of every record, from the engine that makes the rollouts, and the mean rewards.

    All processes must call this; each answers its share, `rollout_rows` at a time. Media are decoded as prompts enter.

    Args:
        prepare: a record and the processor's tensors of its prompt → the prompt. step: optimiser steps made before.
    """
    args, places = scorer.args, range(accelerator.process_index, len(records), accelerator.num_processes)
    data = PromptData(records, scorer.processor, args.prompt)
    asked = (
        (records[place], prepare(records[place], inputs))
        for place, inputs in encoded(data, places, args.dataloader_num_workers)
    )
    answers: dict[int, tuple[str, dict[str, Tensor]]] = {}
    for i, record, prompt, completion in most_likely(engine, asked, sampling):
        read, (text,) = scorer.read(record, prompt, [completion])
        earned = scorer.reward(read, [text], [completion], step)
        observed = {"reward": earned.total, "scorer_failed": torch.tensor([float(earned.failed)])}
        observed |= {f"reward/{name}": values for name, values in earned.parts.items()}
        observed["completion_length"] = torch.tensor([float(len(completion.ids))])
        answers[places[i]] = text, observed
    means = RunningMeans()
    for place in places:  # in this order, as a sum of floats depends on it, and not in that of the ends
        means.add({name: Mean.over(values, ~values.isnan()) for name, values in answers[place][1].items()})
    placed = [(place, answers[place][0]) for place in places]
    if accelerator.num_processes > 1:
        placed = sorted(gather_object(placed))
    return Answers(records, [text for _, text in placed], means.averages(accelerator))
