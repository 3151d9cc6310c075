"""Rewards sampled groups: completions → texts → rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ral.attention import Prompt
from ral.config import RALConfig
from ral.data.answer_boxes import as_asked
from ral.data.record import Record
from ral.data.templates import think_opening
from ral.rewards.functions import Reward, RewardError, of_record, score_group
from ral.rollouts.group import RewardedGroup, SampledGroup
from ral.rollouts.sampling import Completion
from ral.training.dumps import FailedReward


@dataclass(frozen=True)
class Earned:
    """Rewards of G completions.

    Attributes:
        total: `[G]`. parts: `[G]` by reward function, NaN where it did not apply.
        failed: number of completions on which a scorer failed; they earn 0 from it.
    """

    total: Tensor
    parts: dict[str, Tensor]
    failed: int


@dataclass(frozen=True)
class Scorer:
    """The rewards of a run; `processor` makes text of completions."""

    rewards: Sequence[Reward]
    args: RALConfig
    processor: Any

    def rewarded(self, group: SampledGroup, step: int) -> RewardedGroup:
        """The group with its rewards; step: optimiser steps made before. Raises RewardError, see `reward`."""
        record, texts = self.read(group.record, group.prompt, group.completions)
        earned = self.reward(record, texts, group.completions, step)
        return RewardedGroup(
            **vars(group) | {"record": record},
            texts=texts,
            rewards=earned.parts,
            reward=earned.total,
            scorer_failures=earned.failed,
        )

    def read(self, record: Record, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Record, list[str]]:
        """The record as it was asked, and the model's turns: what the prompt says of them already, and the completions."""
        opening = think_opening(self.processor, self.args.think)
        texts = [completion.text(self.processor, opening) for completion in completions]
        return as_asked(record, self.processor, prompt.inputs), texts

    def reward(self, record: Record, texts: list[str], completions: Sequence[Completion], step: int) -> Earned:
        """What the completions of one record earn.

        Raises RewardError, which names record and function; the completions that it failed on are kept for `ral replay`.
        """
        ids = [completion.ids.tolist() for completion in completions]
        try:
            scored = score_group(self.rewards, *of_record(record, texts, ids), time_limit=self.args.reward_timeout)
        except RewardError as error:
            raise self._kept(error, record, texts, ids, step) from error
        parts = {
            name: torch.tensor([math.nan if value is None else value for value in values])
            for name, values in scored.parts.items()
        }
        return Earned(torch.tensor(scored.total), parts, scored.failed)

    def _kept(
        self, error: RewardError, record: Record, texts: list[str], ids: list[list[int]], step: int
    ) -> RewardError:
        args, what = self.args, f"{record.place}: {error}"
        folder = Path(str(args.output_dir)) / f"failed-reward-{step + 1}"
        failed = FailedReward(
            what=what, step=step, record=record, texts=texts, ids=ids, think=args.think, scorer=args.scorer
        )
        failed.save(folder, args.process_index)
        return RewardError(f"{what}. `ral replay {folder} --reward FUNCTION` calls it again")
