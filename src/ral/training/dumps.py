"""Dumps of the batch that stopped a run, as safetensors and JSON. `ral replay` runs them again.

nonfinite-N/batch-R.safetensors    tensors of process R's micro-batches, by their place in the JSON file
nonfinite-N/batch-R.json           the rest of them, the step and the settings; written last
nonfinite-N/model/                 the policy before the update that was not made
failed-reward-N/call-R.json        the completions that a reward function failed on
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ral.attention import prepare_prompt
from ral.data.record import Record
from ral.errors import RunError
from ral.files import atomic_write_text
from ral.rewards.answers import Mode
from ral.rollouts.group import TrainingGroup
from ral.training import first_dumps
from ral.training.record_codec import decode, encode

MODEL = "model"

#: Of the files; those of the first format have no number.
FORMAT = 2


@dataclass(kw_only=True)
class Dump:
    """The batch that one process was about to learn from.

    Attributes:
        what: the non-finite value, in words. step: optimiser steps made before. max_steps: of the run.
        settings: of the run, as JSON has them. micro_batches: of the optimiser step.
    """

    stage: ClassVar[str]
    what: str
    step: int
    max_steps: int
    settings: dict[str, Any]
    micro_batches: list[Any]

    def save(self, folder: Path, process: int) -> None:
        tensors: dict[str, Tensor] = {}
        batches = encode(self.micro_batches, tensors)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / f"batch-{process}.safetensors")
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        facts |= {"format": FORMAT, "stage": self.stage, "micro_batches": batches}
        _write(folder / f"batch-{process}.json", facts)


@dataclass(kw_only=True)
class RolloutsDump(Dump):
    """A dump of reinforcement: a micro-batch is a list of `TrainingGroup`s.

    Attributes:
        factor: of the gradient balance. teacher: the folder or hub id, if any.
    """

    stage = "reinforcement"
    factor: float = 1.0
    teacher: str | None = None


@dataclass(kw_only=True)
class ExamplesDump(Dump):
    """A dump of fine-tuning: a micro-batch is the model's input with its labels, as tensors by name.

    Attributes:
        items: tokens that the loss of the step is divided by; None: those of the micro-batch.
    """

    stage = "fine-tuning"
    items: int | None = None


def load_dump(folder: Path, process: int, model: nn.Module) -> RolloutsDump | ExamplesDump:
    """The dump of one process; prompts are prepared by `model`, which may be the policy's copy in the dump.

    Raises RunError where there is none.
    """
    path = folder / f"batch-{process}.json"
    facts = _read(path, f"no dump of process {process}")
    stage, number, batches = facts.pop("stage"), facts.pop("format", 1), facts.pop("micro_batches")
    kind = next(kind for kind in (RolloutsDump, ExamplesDump) if kind.stage == stage)
    device = next(model.parameters()).device
    tensors = {name: tensor.to(device) for name, tensor in load_file(path.with_suffix(".safetensors")).items()}
    prepare = partial(prepare_prompt, model)
    if number == 1:
        micro_batches = first_dumps.micro_batches(batches, tensors, prepare)
    else:
        micro_batches = decode(batches, tensors, prepare)
    return kind(**facts, micro_batches=micro_batches)


@dataclass(frozen=True, kw_only=True)
class FailedReward:
    """Completions of one record that a reward function failed on.

    Attributes:
        what: the failure, in words. step: optimiser steps made before.
        texts: the completions. ids: their tokens. think, scorer: settings of the rewards.
    """

    what: str
    step: int
    record: Record
    texts: list[str]
    ids: list[list[int]]
    think: bool
    scorer: Mode

    def save(self, folder: Path, process: int) -> None:
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        _write(folder / _call(process), facts | {"format": FORMAT, "record": encode(self.record, {})})

    @classmethod
    def load(cls, folder: Path, process: int) -> FailedReward:
        """Raises RunError where there is none of this process."""
        facts = _read(folder / _call(process), f"no call of a reward by process {process}")
        if facts.pop("format", 1) == 1:
            record = first_dumps.record(facts["record"])
        else:
            record = decode(facts["record"], {}, _no_prompt)
        return cls(**facts | {"record": record})

    @staticmethod
    def is_in(folder: Path) -> bool:
        return any(folder.glob(_call("*")))


def _no_prompt(inputs: dict[str, Any]) -> Any:
    raise TypeError("a record holds no prompt")


def _call(process: int | str) -> str:
    return f"call-{process}.json"


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    atomic_write_text(path, json.dumps(facts, indent=1, default=str) + "\n")


def _read(path: Path, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"{path.parent}: {missing}; expected {path.name}, as a guard leaves it.")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({error}); the dump is damaged, copy it again.") from error
    return facts


def non_finite_fields(group: TrainingGroup) -> list[str]:
    """Non-finite fields of the group before the pass. NaN rewards do not count: they mean "does not apply"."""
    found: dict[str, Tensor] = {}
    encode(group, found)
    return [
        name
        for name, value in found.items()
        if value.is_floating_point()
        and not name.startswith("scored.rewards.")
        and not bool(torch.isfinite(value).all())
    ]
