"""Which keys of a row all completions of a group share, and which of them show the evidence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ral.attention.keys import Keys, select_keys
from ral.rollouts.group import Targets, TrainingGroup

#: Of six prompt tokens, the third to fifth are visual; the fourth and the last show the evidence.
VISUAL = torch.tensor([False, False, True, True, True, False])
EVIDENCE = torch.tensor([False, False, False, True, False, True])


def group(evidence: torch.Tensor | None = EVIDENCE) -> TrainingGroup:
    scored: Any = SimpleNamespace(prompt=SimpleNamespace(visual=VISUAL, input_ids=torch.arange(6)))
    return TrainingGroup(scored=scored, targets=Targets(evidence=evidence))


@pytest.mark.parametrize(
    ("keys", "skip", "shared", "shows"),
    [
        ("all", 0, 6, [3, 5]), ("all", 2, 4, [1, 3]), ("prompt", 0, 6, [3, 5]), ("prompt", 4, 2, [1]),
        ("visual", 0, 3, [1]), ("visual", 2, 3, [1]),
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
    selected = select_keys(row, keys, 6, VISUAL, skip)[0, 0]
    assert selected[:shared][evidence].sum() == pytest.approx(1)
