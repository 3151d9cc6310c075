"""Dynamic sampling: prompts without a signal give their place to other prompts (DAPO, arXiv 2503.14476, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator

from ral.config import RALConfig
from ral.data.record import Record
from ral.rollouts.group import RewardedGroup

#: Records, their places among all prompts of the rollout batch, and the number of the round → their groups.
Draw = Callable[[Sequence[Record], Sequence[int], int], list[RewardedGroup]]


def with_signal(
    groups: Sequence[RewardedGroup],
    places: Sequence[int],
    others: Sequence[Record],
    draw: Draw,
    args: RALConfig,
    accelerator: Accelerator,
) -> list[RewardedGroup]:
    """Draw another prompt in place of each that has no signal, for `max_resample_times` rounds at most.

    The prompt of a place in a round is always the same: it depends neither on the number of processes nor on the places that are
    replaced. No prompt comes twice. What has no signal after the last round, or when no prompt is left, stays. All processes
    must call this; each draws for its own places.

    Args:
        others: the records that may be drawn, in order.
    """
    kept = [replace(group, replaced=0) for group in groups]
    everywhere = args.prompts_per_batch * args.micro_batches_per_rollout * args.world_size
    for attempt in range(args.max_resample_times):
        first = attempt * everywhere
        open_ = [
            n
            for n, group in enumerate(kept)
            if first + places[n] < len(others) and not group.has_signal(args.mask_truncated_completions)
        ]
        waiting = torch.tensor(len(open_), device=accelerator.device)
        if not int(accelerator.reduce(waiting, reduction="sum")):
            break
        where = [places[n] for n in open_]
        drawn = draw([others[first + place] for place in where], where, attempt + 1)
        for n, group in zip(open_, drawn, strict=True):
            kept[n] = replace(group, replaced=attempt + 1)
    return kept
