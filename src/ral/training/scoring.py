"""Rewards sampled groups: completions → texts → rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

from ral.attention import Prompt
from ral.config import RALConfig
from ral.data.answer_boxes import as_asked
from ral.data.record import Record
from ral.data.templates import think_opening
from ral.errors import ConfigError
from ral.rewards.arguments import arguments
from ral.rewards.calls import RewardError, RewardFunction, RewardLog
from ral.rewards.functions import GroupScore, Reward, build_rewards, highest_total, score_groups
from ral.rollouts.group import RewardedGroup, SampledGroup
from ral.rollouts.sampling import Completion
from ral.training.dumps import FailedReward

#: A sum of weights, such as 0.9 + 0.1, is as precise as this.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Earned:
    """Rewards of G completions.

    Attributes:
        total: `[G]`. parts: `[G]` by reward function, NaN where it did not apply.
        failed: number of completions on which a scorer failed; they earn 0 from it.
        log: what reward functions logged besides.
    """

    total: Tensor
    parts: dict[str, Tensor]
    failed: int
    log: RewardLog


@dataclass(frozen=True)
class Scorer:
    """The rewards of a run; `processor` makes text of completions, `state` tells reward functions how far training is."""

    rewards: Sequence[Reward]
    args: RALConfig
    processor: Any
    state: Callable[[], TrainerState] = TrainerState

    def rewarded(self, groups: Sequence[SampledGroup]) -> list[RewardedGroup]:
        """The groups with their rewards. Raises RewardError, see `earned`."""
        read = [self.read(group.record, group.prompt, group.completions) for group in groups]
        found = self.earned([(*one, group.completions) for one, group in zip(read, groups, strict=True)])
        return [
            RewardedGroup(
                **vars(group) | {"record": record},
                texts=texts,
                rewards=earned.parts,
                reward=earned.total,
                scorer_failures=earned.failed,
                extra=earned.log.extra,
                logged=earned.log.metrics,
            )
            for group, (record, texts), earned in zip(groups, read, found, strict=True)
        ]

    def read(self, record: Record, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Record, list[str]]:
        """The record as it was asked, and the model's turns: what the prompt says of them already, and the completions."""
        opening = think_opening(self.processor, self.args.think)
        texts = [completion.text(self.processor, opening) for completion in completions]
        return as_asked(record, self.processor, prompt.inputs), texts

    def reward(self, record: Record, texts: list[str], completions: Sequence[Completion], step: int) -> Earned:
        """What the completions of one record earn; step: optimiser steps made before. Raises RewardError, see `earned`."""
        return self.earned([(record, texts, completions)], step)[0]

    def earned(
        self, read: Sequence[tuple[Record, list[str], Sequence[Completion]]], step: int | None = None
    ) -> list[Earned]:
        """What the completions of several records earn, as `read` gave them: all `async def` functions at the same time.

        Raises RewardError, which names record and function; the completions that it failed on are kept for `ral replay`.
        """
        media = not all(reward.reads_words for reward in self.rewards)
        ids = [[completion.ids.tolist() for completion in completions] for *_, completions in read]
        groups = [arguments(record, texts, own, media) for (record, texts, _), own in zip(read, ids, strict=True)]
        state = self.state()
        try:
            scored = score_groups(self.rewards, groups, self.args.reward_timeout, state)
        except RewardError as error:
            record, texts, _ = read[error.group]
            raise self._kept(
                error, record, texts, ids[error.group], state.global_step if step is None else step
            ) from error
        return [_earned(one) for one in scored]

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


def _earned(scored: GroupScore) -> Earned:
    parts = {
        name: torch.tensor([math.nan if value is None else value for value in values])
        for name, values in scored.parts.items()
    }
    return Earned(torch.tensor(scored.total), parts, scored.failed, scored.log)


def run_rewards(
    functions: Sequence[str | RewardFunction] | None, weights: Sequence[float] | None, args: RALConfig
) -> list[Reward]:
    """The rewards of a run; see `build_rewards`. Reward models are on `reward_model_device`, or where the policy is.

    Raises ConfigError for an `evidence_reward` that no completion can earn.
    """
    rewards = build_rewards(
        functions,
        weights,
        mode=args.scorer,
        think=args.think,
        think_opened=False,
        max_completion_length=args.max_completion_length,
        soft_punish_cache=args.soft_punish_cache,
        device=args.reward_model_device or args.device,
    )
    least, highest = args.evidence_reward, highest_total(rewards)
    if least is not None and least > highest + ROUNDING:
        raise ConfigError(
            f"evidence_reward={least} is more than a completion can earn, which is {highest:g} from "
            f"{', '.join(reward.name for reward in rewards)}: no row would be trained; set it to at most that, or leave it out"
        )
    return rewards
