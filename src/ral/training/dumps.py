"""What a guard leaves of the batch that a run stopped at: safetensors and JSON, from which `ral replay` runs it again.

nonfinite-N/batch-R.safetensors    tensors of process R's micro-batches: by group and field, or by name
nonfinite-N/batch-R.json           the rest of them, the step and the settings; written last
nonfinite-N/model/                 the policy before the update that was not made
failed-reward-N/call-R.json        the completions that a reward function failed on
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ral.attention import prepare_prompt
from ral.data.record import Box, Record
from ral.errors import RunError
from ral.files import atomic_write_text
from ral.rewards.answers import Mode
from ral.rollouts.group import ScoredGroup
from ral.rollouts.sampling import Completion

MODEL = "model"

#: Fields of `ScoredGroup` that are one tensor or None.
_TENSORS = (
    "reward", "advantages", "attention_advantages", "weights", "evidence", "answer", "look_bias", "biased_logps", "old_logps", "ref_logps",
    "teacher_hidden",
)  # fmt: skip
#: Fields that hold several tensors, by name, layer or place.
_TABLES = ("rewards", "old_rows", "target_rows", "teacher_rows")
#: Fields of `Record` that are kept: what reward functions and messages need, no media.
_RECORD = ("id", "problem", "solution", "problem_type", "options", "extra", "origin")


@dataclass(kw_only=True)
class Dump(ABC):
    """What one process was about to learn from.

    Attributes:
        what: was not finite, in words. step: optimiser steps made before. max_steps: of the run.
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
        rows = [self.packed(micro_batch, str(m), tensors) for m, micro_batch in enumerate(self.micro_batches)]
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / f"batch-{process}.safetensors")
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        _write(folder / f"batch-{process}.json", {"stage": self.stage, **facts, "micro_batches": rows})

    @staticmethod
    @abstractmethod
    def packed(micro_batch: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
        """The micro-batch's row of the JSON file; its tensors are added to `tensors` under `prefix`."""

    @staticmethod
    @abstractmethod
    def unpacked(row: Any, prefix: str, tensors: Mapping[str, Tensor], model: nn.Module) -> Any:
        """The micro-batch that `packed` made such a row of, on the model's device."""


@dataclass(kw_only=True)
class RolloutsDump(Dump):
    """Of reinforcement: a micro-batch is a list of groups.

    Attributes:
        factor: of the gradient balance. teacher: the folder or hub id, if any.
    """

    stage = "reinforcement"
    factor: float = 1.0
    teacher: str | None = None

    @staticmethod
    def packed(micro_batch: list[ScoredGroup], prefix: str, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
        return [_group_to_json(group, f"{prefix}.{g}", tensors) for g, group in enumerate(micro_batch)]

    @staticmethod
    def unpacked(
        row: list[dict[str, Any]], prefix: str, tensors: Mapping[str, Tensor], model: nn.Module
    ) -> list[ScoredGroup]:
        return [_group_from_json(group, f"{prefix}.{g}", tensors, model) for g, group in enumerate(row)]


@dataclass(kw_only=True)
class ExamplesDump(Dump):
    """Of fine-tuning: a micro-batch is the model's input with its labels.

    Attributes:
        items: tokens that the loss of the step is divided by; None: those of the micro-batch.
    """

    stage = "fine-tuning"
    items: int | None = None

    @staticmethod
    def packed(micro_batch: Mapping[str, Tensor], prefix: str, tensors: dict[str, Tensor]) -> list[str]:
        tensors |= {f"{prefix}.{name}": _kept(value) for name, value in micro_batch.items()}
        return list(micro_batch)

    @staticmethod
    def unpacked(row: list[str], prefix: str, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        return {name: tensors[f"{prefix}.{name}"].to(_device(model)) for name in row}


def load_dump(folder: Path, process: int, model: nn.Module) -> RolloutsDump | ExamplesDump:
    """The dump of one process; prompts are prepared by `model`, which may be the policy's copy in the dump.

    Raises RunError where there is none.
    """
    path = folder / f"batch-{process}.json"
    facts = _read(path, f"no dump of process {process}")
    kind = next(kind for kind in (RolloutsDump, ExamplesDump) if kind.stage == facts["stage"])
    del facts["stage"]
    tensors = load_file(path.with_suffix(".safetensors"))
    rows = facts.pop("micro_batches")
    micro_batches = [kind.unpacked(row, str(m), tensors, model) for m, row in enumerate(rows)]
    return kind(**facts, micro_batches=micro_batches)


@dataclass(frozen=True, kw_only=True)
class FailedReward:
    """Completions of one record that a reward function failed on.

    Attributes:
        what: went wrong, in words. step: optimiser steps made before.
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
        _write(folder / _call(process), facts | {"record": _record_to_json(self.record)})

    @classmethod
    def load(cls, folder: Path, process: int) -> FailedReward:
        """Raises RunError where there is none of this process."""
        facts = _read(folder / _call(process), f"no call of a reward by process {process}")
        return cls(**facts | {"record": _record_from_json(facts["record"])})

    @staticmethod
    def is_in(folder: Path) -> bool:
        return any(folder.glob(_call("*")))


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


def _kept(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _record_to_json(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _RECORD} | {"boxes": [asdict(box) for box in record.boxes]}


def _record_from_json(row: Mapping[str, Any]) -> Record:
    boxes = tuple(Box(**box) for box in row["boxes"])
    return Record(**{**row, "options": tuple(row["options"]), "boxes": boxes})


def _group_to_json(group: ScoredGroup, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The group's row of the JSON file; its tensors are added to `tensors`."""

    def put(name: str, value: Tensor) -> None:
        tensors[f"{prefix}.{name}"] = _kept(value)

    for name in _TENSORS:
        if (value := getattr(group, name)) is not None:
            put(name, value)
    for name in _TABLES:
        for key, value in _items(getattr(group, name)).items():
            put(f"{name}/{key}", value)
    for g, completion in enumerate(group.completions):
        put(f"completions/{g}", completion.ids)
    inputs = {}
    for name, value in group.prompt.inputs.items():
        if isinstance(value, Tensor):
            put(f"inputs/{name}", value)
        else:
            inputs[name] = value
    return {
        "record": _record_to_json(group.record),
        "texts": group.texts,
        "truncated": [completion.truncated for completion in group.completions],
        "inputs": inputs,
    }


def _group_from_json(
    row: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor], model: nn.Module
) -> ScoredGroup:
    own = {
        name.removeprefix(f"{prefix}."): t.to(_device(model))
        for name, t in tensors.items()
        if name.startswith(f"{prefix}.")
    }

    def table(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in own.items() if key.startswith(f"{name}/")}

    def layers(name: str) -> dict[int, Tensor]:
        return {int(key): value for key, value in table(name).items()}

    completions = [Completion(table("completions")[str(g)], truncated) for g, truncated in enumerate(row["truncated"])]
    group = ScoredGroup(
        record=_record_from_json(row["record"]),
        prompt=prepare_prompt(model, {**row["inputs"], **table("inputs")}),
        completions=completions,
        texts=row["texts"],
        rewards=table("rewards"),
        reward=own["reward"],
        advantages=own["advantages"],
        attention_advantages=own["attention_advantages"],
    )
    for name in _TENSORS[3:]:
        setattr(group, name, own.get(name))
    group.old_rows = layers("old_rows")
    group.target_rows = layers("target_rows") or None
    group.teacher_rows = [value for _, value in sorted(layers("teacher_rows").items())] or None
    return group


def _items(value: Mapping[Any, Tensor] | list[Tensor] | None) -> dict[Any, Tensor]:
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else dict(enumerate(value))


def non_finite_fields(group: ScoredGroup) -> list[str]:
    """What of the group, as it was before the pass, is not finite; rewards that did not apply are NaN by meaning."""
    found: dict[str, Tensor] = {}
    _group_to_json(group, "", found)
    return [
        name.removeprefix(".")
        for name, value in found.items()
        if value.is_floating_point() and not name.startswith(".rewards/") and not bool(torch.isfinite(value).all())
    ]
