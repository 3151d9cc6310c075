"""The packed forward of prompt groups with a run's settings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ral.attention import GroupOutput, forward_groups
from ral.attention.forward import TokenStatistics
from ral.config import RALConfig
from ral.rollouts.group import ScoredGroup, selected_rows


def packed_forward(
    model: nn.Module,
    groups: Sequence[ScoredGroup],
    args: RALConfig,
    *,
    layers: Sequence[int] = (),
    look_bias: Sequence[Tensor | None] | None = None,
    token_statistics: TokenStatistics | None = None,
) -> list[GroupOutput]:
    """One pass of `model` over all groups of a micro-batch; `layers` are those whose attention rows are captured."""
    return forward_groups(
        model,
        [group.prompt for group in groups],
        [group.ids for group in groups],
        layers=layers,
        heads=args.heads if layers else None,
        query=args.attention_query,
        temperature=args.temperature,
        look_bias=look_bias,
        token_statistics=token_statistics,
        kernel=args.attention_kernel,
    )


def rows_of(output: GroupOutput, args: RALConfig) -> dict[int, Tensor]:
    """Policy rows over the keys that the run's attention ranges over: layer → `[G, R, K]`."""
    return selected_rows(output, args.attention_keys, args.attention_skip)
