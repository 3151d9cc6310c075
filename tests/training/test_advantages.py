"""Weights of tokens beside all groups of a step: numbers by hand, on groups without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ral.attention import Prompt
from ral.config import RALConfig
from ral.data.record import Record
from ral.rollouts.group import RewardedGroup
from ral.rollouts.sampling import Completion
from ral.training.advantages import score_groups

PROMPT = Prompt(torch.arange(3), torch.arange(3), (), torch.tensor([], dtype=torch.long), None, {})


def group(lengths: tuple[int, int], truncated: tuple[bool, bool] = (False, False)) -> RewardedGroup:
    completions = [Completion(torch.ones(n, dtype=torch.long), cut) for n, cut in zip(lengths, truncated, strict=True)]
    return RewardedGroup(
        record=Record("a", "", ""),
        prompt=PROMPT,
        completions=completions,
        texts=["", ""],
        rewards={},
        reward=torch.tensor([1.0, 0.0]),
    )


def weights(folder: Path, micro_batches: list[list[RewardedGroup]], **changes: Any) -> list[Tensor]:
    """Of every group the sums over tokens, `[G]`."""
    args = RALConfig(output_dir=str(folder), use_cpu=True, num_generations=2, per_device_train_batch_size=2,
                     max_completion_length=10,
                     **{"gradient_accumulation_steps": len(micro_batches)} | changes)  # fmt: skip
    shuffles = [[torch.Generator()] * len(micro_batch) for micro_batch in micro_batches]
    scored = score_groups(micro_batches, shuffles, args, Accelerator(cpu=True))
    return [group.weights.sum(dim=1) for micro_batch in scored for group in micro_batch]


#: Two micro-batches: of 6 + 4 tokens, and of 10.
STEP = [[group((4, 2)), group((1, 3))], [group((8, 2))]]


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("dapo", [[4 / 20, 2 / 20], [1 / 20, 3 / 20], [8 / 20, 2 / 20]]),
        ("grpo", [[1 / 6, 1 / 6]] * 3),
        ("dr_grpo", [[4 / 60, 2 / 60], [1 / 60, 3 / 60], [8 / 60, 2 / 60]]),
        ("bnpo", [[4 / 10 / 2, 2 / 10 / 2], [1 / 10 / 2, 3 / 10 / 2], [8 / 10 / 2, 2 / 10 / 2]]),
    ],
)
def test_a_token_counts_by_the_loss_type(tmp_path: Path, loss_type: str, expected: list[list[float]]) -> None:
    for found, row in zip(weights(tmp_path, STEP, loss_type=loss_type), expected, strict=True):
        torch.testing.assert_close(found, torch.tensor(row))


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_truncated_completions_count_for_nothing_where_they_are_masked(tmp_path: Path, loss_type: str) -> None:
    """Tokens are divided by those that count; completions, as in TRL, by all."""
    step = [[group((10, 2), (True, False))], [group((10, 10), (True, True))]]
    [first, second] = weights(tmp_path, step, loss_type=loss_type, mask_truncated_completions=True)
    whole = {"dapo": 1.0, "grpo": 1 / 4, "dr_grpo": 2 / 40, "bnpo": 1 / 2}
    torch.testing.assert_close(first, torch.tensor([0.0, whole[loss_type]]))
    assert second.tolist() == [0, 0]
    assert all(float(one.sum()) > 0 for one in weights(tmp_path, step, loss_type=loss_type))


@pytest.mark.parametrize(("loss_type", "divided_by"), [("dapo", 10), ("dr_grpo", 30), ("luspo", 3)])
def test_parts_of_a_rollout_batch_are_divided_by_their_mean(tmp_path: Path, loss_type: str, divided_by: int) -> None:
    """20 tokens and 6 completions in two parts: each optimiser step counts half of them, as in TRL."""
    changes: dict[str, Any] = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    found = weights(
        tmp_path, STEP, loss_type=loss_type, gradient_accumulation_steps=1, steps_per_generation=2, **changes
    )
    for weight, lengths in zip(found, ([4, 2], [1, 3], [8, 2]), strict=True):
        torch.testing.assert_close(weight, torch.tensor(lengths) / divided_by)
