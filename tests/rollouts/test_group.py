"""Which keys of a row all completions of a group share, and which of them show the evidence."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ral.attention.keys import Keys, select_keys
from ral.rollouts.group import RewardedGroup, ScoredGroup, Targets, TrainingGroup, rollout_metrics
from ral.rollouts.sampling import Completion

#: Of six prompt tokens, the third to fifth are visual; the fourth is off the edge; the fourth and the last show the evidence.
VISUAL = torch.tensor([False, False, True, True, True, False])
INTERIOR = torch.tensor([False, False, False, True, False, False])
EVIDENCE = torch.tensor([False, False, False, True, False, True])


def group(evidence: torch.Tensor | None = EVIDENCE) -> TrainingGroup:
    scored: Any = SimpleNamespace(prompt=SimpleNamespace(visual=VISUAL, interior=INTERIOR, input_ids=torch.arange(6)))
    return TrainingGroup(scored=scored, targets=Targets(evidence=evidence))


@pytest.mark.parametrize(
    ("keys", "skip", "shared", "shows"),
    [
        ("all", 0, 6, [3, 5]), ("all", 2, 4, [1, 3]), ("prompt", 0, 6, [3, 5]), ("prompt", 4, 2, [1]),
        ("visual", 0, 3, [1]), ("visual", 2, 3, [1]), ("interior", 0, 1, [0]),
    ],
)  # fmt: skip
def test_shared_keys_are_where_selected_rows_have_the_prompt(
    keys: Keys, skip: int, shared: int, shows: list[int]
) -> None:
    assert group().shared_keys(keys, skip) == shared
    evidence = group().shared_evidence(keys, skip)
    assert evidence is not None
    assert evidence.nonzero()[:, 0].tolist() == shows
    assert group(None).shared_evidence(keys, skip) is None
    # a row that looks at nothing but the evidence, behind four tokens of its own
    row = torch.cat([EVIDENCE / 2, torch.zeros(4)])[None, None]
    selected = select_keys(row, keys, 6, INTERIOR if keys == "interior" else VISUAL, skip)[0, 0]
    assert selected[:shared][evidence].sum() == pytest.approx(1)


def test_what_is_logged_of_rollouts_by_hand() -> None:
    """Of three groups one has no signal; a reward that is not a number is left out of its own mean only."""

    def scored(reward: list[float], own: list[float], lengths: list[int], failures: int) -> Any:
        completions = [Completion(torch.zeros(n, dtype=torch.long), truncated=n > 3) for n in lengths]
        return SimpleNamespace(
            reward=torch.tensor(reward), advantages=torch.tensor(reward) - sum(reward) / 2, rewards={"own": torch.tensor(own)},
            lengths=torch.tensor(lengths), completions=completions, scorer_failures=failures, replaced=None,
            logged={"mine": [float(failures)] * failures},
        )  # fmt: skip

    groups = [
        scored([1.0, 0.0], [1.0, math.nan], [1, 2], 1),
        scored([0.5, 0.5], [0.0, 0.0], [3, 4], 0),
        scored([1.0, 0.5], [0.5, 1.5], [5, 6], 2),
    ]
    found = {name: float(mean.total / mean.weight) for name, mean in rollout_metrics(groups).items()}
    spread = [0.5**0.5, 0, 0.125**0.5]
    assert found == pytest.approx(
        {
            "reward": 3.5 / 6, "reward_std": sum(spread) / 3, "advantage_std": sum(spread) / 3,
            "groups_without_signal": 1 / 3, "completion_length": 3.5, "truncated": 3 / 6, "reward/own": 3 / 5,
            "scorer_failed": 3 / 6, "mine": (1 + 2 + 2) / 3,
        }
    )  # fmt: skip


@pytest.mark.parametrize("kind", [RewardedGroup, ScoredGroup])
def test_no_scorer_failed_and_no_group_was_replaced_unless_said(kind: Any) -> None:
    """Dumps of earlier versions do not say it."""
    needed = {field.name: None for field in fields(kind) if field.default is MISSING}
    assert (kind(**needed).scorer_failures, kind(**needed).replaced) == (0, None)
