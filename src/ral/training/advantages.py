"""Advantages and token weights: what a rewarded group means beside all groups of its optimiser step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ral.config import RALConfig
from ral.objective.terms import group_advantages
from ral.objective.token_loss import StepTotals, token_weights
from ral.rollouts.group import RewardedGroup, ScoredGroup


class _Sums(NamedTuple):
    """Over all groups and processes; of one optimiser step in the mean, where a rollout batch is learnt from in parts."""

    completions: float
    tokens: float


def score_groups(
    micro_batches: Sequence[Sequence[RewardedGroup]],
    shuffles: Sequence[Sequence[torch.Generator]],
    args: RALConfig,
    accelerator: Accelerator,
) -> list[list[ScoredGroup]]:
    """Give the groups of one rollout batch their advantages and weights. All processes must call this.

    Args:
        shuffles: one per group, for the control that permutes the advantages of the attention term.
    """
    groups = [group for micro_batch in micro_batches for group in micro_batch]
    sums = _sums(groups, args, accelerator)
    spread = _spread(groups, accelerator).cpu() if args.scale_rewards == "batch" else None
    batches = args.gradient_accumulation_steps * args.world_size
    scored = []
    for micro_batch, own in zip(micro_batches, shuffles, strict=True):
        counted = [group.counted(args.mask_truncated_completions) for group in micro_batch]
        totals = StepTotals(*sums, batch_tokens=sum(int(mask.sum()) for mask in counted), batches=batches)
        scored.append(
            [
                _scored(group, mask, totals, spread, shuffle, args)
                for group, mask, shuffle in zip(micro_batch, counted, own, strict=True)
            ]
        )
    return scored


def _scored(
    group: RewardedGroup,
    counted: Tensor,
    totals: StepTotals,
    spread: Tensor | None,
    shuffle: torch.Generator,
    args: RALConfig,
) -> ScoredGroup:
    advantages = group_advantages(group.reward, args.scale_rewards, batch_std=spread).to(args.device)
    weights = token_weights(counted, totals, args.loss_type, args.max_completion_length)
    return ScoredGroup(
        **vars(group),
        advantages=advantages,
        attention_advantages=_of_attention(advantages, shuffle, args),
        # Gradients are averaged over processes, the weights already count all of them.
        weights=weights.to(args.device) * args.world_size,
    )


def _of_attention(advantages: Tensor, shuffle: torch.Generator, args: RALConfig) -> Tensor:
    match args.attention_advantage:
        case "absolute":
            return advantages.abs()
        case "shuffled":
            return advantages[torch.randperm(len(advantages), generator=shuffle).to(advantages.device)]
        case _:
            return advantages


def _sums(groups: Sequence[RewardedGroup], args: RALConfig, accelerator: Accelerator) -> _Sums:
    tokens = sum(int(group.counted(args.mask_truncated_completions).sum()) for group in groups)
    own = torch.tensor([sum(len(group.completions) for group in groups), tokens], device=args.device)
    return _Sums(*(value / args.parts_per_rollout for value in accelerator.reduce(own, reduction="sum").tolist()))


def _spread(groups: Sequence[RewardedGroup], accelerator: Accelerator) -> Tensor:
    """The standard deviation of all rewards of the rollout batch."""
    rewards = torch.cat([group.reward for group in groups]).to(accelerator.device)
    return accelerator.gather(rewards).std()
