"""Reads dumps of the first format, which stored a group as tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ral.attention import Prompt
from ral.data.record import Box, Record
from ral.rollouts.group import OldPass, ScoredGroup, Targets, TrainingGroup
from ral.rollouts.sampling import Completion

#: What makes a prompt of the processor's dict.
Prepare = Callable[[dict[str, Any]], Prompt]


def micro_batches(rows: list[Any], tensors: Mapping[str, Tensor], prepare: Prepare) -> list[Any]:
    """Micro-batches of a dump: lists of groups (reinforcement), or tensors by name (fine-tuning)."""
    return [_micro_batch(row, _within(tensors, f"{m}."), prepare) for m, row in enumerate(rows)]


def record(row: Mapping[str, Any]) -> Record:
    boxes = tuple(Box(**box) for box in row["boxes"])
    return Record(**{**row, "options": tuple(row["options"]), "boxes": boxes})


def _micro_batch(row: Any, tensors: Mapping[str, Tensor], prepare: Prepare) -> Any:
    if all(isinstance(name, str) for name in row):
        return {name: tensors[name] for name in row}
    return [_group(group, _within(tensors, f"{g}."), prepare) for g, group in enumerate(row)]


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _group(row: Mapping[str, Any], tensors: Mapping[str, Tensor], prepare: Prepare) -> TrainingGroup:
    def layers(name: str) -> dict[int, Tensor]:
        return {int(layer): rows for layer, rows in _within(tensors, f"{name}/").items()}

    ids = _within(tensors, "completions/")
    scored = ScoredGroup(
        record=record(row["record"]),
        prompt=prepare({**row["inputs"], **_within(tensors, "inputs/")}),
        completions=[Completion(ids[str(g)], truncated) for g, truncated in enumerate(row["truncated"])],
        texts=row["texts"],
        rewards=_within(tensors, "rewards/"),
        look_bias=tensors.get("look_bias"),
        reward=tensors["reward"],
        advantages=tensors["advantages"],
        attention_advantages=tensors["attention_advantages"],
        weights=tensors["weights"],
    )
    single = ("ref_logps", "biased_logps", "evidence", "answer", "teacher_hidden")
    targets = Targets(
        target_rows=layers("target_rows") or None,
        teacher_rows=[rows for _, rows in sorted(layers("teacher_rows").items())] or None,
        **{name: tensors.get(name) for name in single},
    )
    # Old log-probabilities stood there before the first update, too, where the biased ones are the old ones.
    began = "old_logps" in tensors and (targets.biased_logps is None or bool(layers("old_rows")))
    old = OldPass(logps=tensors["old_logps"], rows=layers("old_rows")) if began else None
    return TrainingGroup(scored=scored, targets=targets, old=old)
