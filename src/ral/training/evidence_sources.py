"""Where the anchor `evidence` takes its evidence from, by the name that `evidence_from` gives.

A source is a function of one micro-batch of scored groups. To add one, write the function, put it into `SOURCES`, and its name into
`ral.objective.evidence_settings.EvidenceSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ral.config import RALConfig
from ral.data.record_errors import name_in_errors
from ral.rollouts.group import ScoredGroup, Targets
from ral.training.evidence import answer_tokens, places_of, with_control

#: What is known of the evidence of each group, with settings, processor and policy.
Source = Callable[[RALConfig, Any, nn.Module, Sequence[ScoredGroup]], list[Targets]]


def trained_rows(group: ScoredGroup, args: RALConfig, processor: Any) -> Tensor:
    """`[G, R]` bool, the rows that look at the evidence: those that `evidence_rows` names, of rewarded completions."""
    mask = group.mask
    if args.evidence_rows == "answer":
        rows = answer_tokens(group.texts, group.ids, processor, args.scorer, args.think)
    elif args.evidence_rows == "first":
        rows = mask & (torch.arange(mask.shape[1]) < args.evidence_first)
    else:
        rows = mask
    if args.evidence_reward is not None:
        rows = rows & (group.reward.cpu() >= args.evidence_reward)[:, None]
    return rows.to(args.device)


def from_data(args: RALConfig, processor: Any, policy: nn.Module, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The boxes or spans of the records; no pass of any model."""
    grounded = [group for group in groups if group.record.grounded]
    places = []
    for group in grounded:
        with name_in_errors(group.record):
            places.append(places_of(group.record, group.prompt, processor, args.num_frames, args.fps))
    records = [group.record for group in grounded]
    known = iter(with_control(places, records, args.evidence_control))
    found = []
    for group in groups:
        rows = trained_rows(group, args, processor)
        if not group.record.grounded:
            found.append(Targets(answer=rows))
            continue
        one = next(known)
        with name_in_errors(group.record):
            density = one.density(args) if args.evidence_target == "mixture" else None
            found.append(Targets(evidence=one.mask(), answer=rows, density=density))
    return found


SOURCES: dict[str, Source] = {"data": from_data}
