"""The batch that a guard stopped at, on disk: safetensors and JSON, from which `ral replay` runs it again.

nonfinite-N/batch-R.safetensors    tensors of process R's groups, by micro-batch, group and field
nonfinite-N/batch-R.json           the rest of them, the step and the settings; written last
nonfinite-N/model/                 the policy before the update that was not made
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ral.attention import prepare_prompt
from ral.data.record import Record
from ral.files import atomic_write_text
from ral.groups import ScoredGroup
from ral.rollout import Completion

MODEL = "model"

#: Fields of `ScoredGroup` that are one tensor or None.
_TENSORS = (
    "reward", "advantages", "attention_advantages", "weights", "look_bias", "biased_logps", "old_logps", "ref_logps",
    "teacher_hidden",
)  # fmt: skip
#: Fields that hold several tensors, by name, layer or place.
_TABLES = ("rewards", "old_rows", "target_rows", "teacher_rows")
_RECORD = ("id", "problem", "solution", "problem_type", "origin")


@dataclass
class Dump:
    """What one process was about to learn from.

    Attributes:
        what: was not finite, in words. step: optimiser steps made before. max_steps: of the run.
        factor: of the gradient balance. settings: of `RALConfig`, as JSON has them. teacher: the folder or hub id, if any.
        micro_batches: the groups.
    """

    what: str
    step: int
    max_steps: int
    factor: float
    settings: dict[str, Any]
    teacher: str | None = None
    micro_batches: list[list[ScoredGroup]] = field(default_factory=list)

    def save(self, folder: Path, process: int) -> None:
        tensors: dict[str, Tensor] = {}
        groups = []
        for m, micro_batch in enumerate(self.micro_batches):
            groups.append([_group_to_json(group, f"{m}.{g}", tensors) for g, group in enumerate(micro_batch)])
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / f"batch-{process}.safetensors")
        facts = {name: getattr(self, name) for name in ("what", "step", "max_steps", "factor", "settings", "teacher")}
        atomic_write_text(
            folder / f"batch-{process}.json",
            json.dumps({**facts, "micro_batches": groups}, indent=1, default=str) + "\n",
        )

    @classmethod
    def load(cls, folder: Path, process: int, model: nn.Module) -> Dump:
        """The dump of one process; prompts are prepared by `model`, which may be the policy's copy in the dump.

        Raises ValueError where there is none.
        """
        path = folder / f"batch-{process}.json"
        if not path.is_file():
            raise ValueError(f"{folder}: no dump of process {process}; expected {path.name}, as a guard leaves it.")
        facts = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))
        micro_batches = [
            [_group_from_json(row, f"{m}.{g}", tensors, model) for g, row in enumerate(rows)]
            for m, rows in enumerate(facts.pop("micro_batches"))
        ]
        return cls(**facts, micro_batches=micro_batches)


def _group_to_json(group: ScoredGroup, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The group's row of the JSON file; its tensors are added to `tensors`."""

    def put(name: str, value: Tensor) -> None:
        tensors[f"{prefix}.{name}"] = value.detach().cpu().contiguous().clone()

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
        "record": {name: getattr(group.record, name) for name in _RECORD},
        "texts": group.texts,
        "truncated": [completion.truncated for completion in group.completions],
        "inputs": inputs,
    }


def _group_from_json(
    row: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor], model: nn.Module
) -> ScoredGroup:
    device = next(model.parameters()).device
    own = {
        name.removeprefix(f"{prefix}."): t.to(device) for name, t in tensors.items() if name.startswith(f"{prefix}.")
    }

    def table(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in own.items() if key.startswith(f"{name}/")}

    def layers(name: str) -> dict[int, Tensor]:
        return {int(key): value for key, value in table(name).items()}

    completions = [Completion(table("completions")[str(g)], truncated) for g, truncated in enumerate(row["truncated"])]
    group = ScoredGroup(
        record=Record(**row["record"]),
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
