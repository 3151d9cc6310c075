"""What the rivals see of a group, and what one of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ral.objective.terms import MAX_LOG_RATIO, Term


class PerceptionSettings(Protocol):
    """The settings of a run (`PerceptionFields`) that the rivals read."""

    @property
    def perception_coef(self) -> float: ...
    @property
    def perception_entropy_coef(self) -> float: ...
    @property
    def perception_top(self) -> float: ...
    @property
    def perception_floor(self) -> float: ...


@dataclass(frozen=True)
class OldTokens:
    """The tokens of one group under the policy that sampled them. Detached.

    Attributes:
        logps: `[G, R]`. masked_logps: `[G, R]` under a masked image; None unless the rival asks for it.
        attention: `[G, R, P+R]`, what each token gives to all tokens before it and to itself, mean over heads and trained layers;
            None unless the rival asks for rows.
        visual: `[P]` bool. mask: `[G, R]` bool.
    """

    logps: Tensor
    masked_logps: Tensor | None
    attention: Tensor | None
    visual: Tensor
    mask: Tensor


#: How much the advantage of each token counts, `[G, R]` ≥ 0; padding counts for nothing.
Factors = Callable[[OldTokens, PerceptionSettings], Tensor]


class PerceptionTerm(Protocol):
    """A further term of the token loss."""

    def __call__(self, logps: Tensor, masked_logps: Tensor, weights: Tensor, settings: PerceptionSettings) -> Term:
        """All `[G, R]`: log-probabilities with gradient, those under a masked image (detached), weights of tokens."""


@dataclass(frozen=True)
class Perception:
    """A rival: factors on advantages, or a term of its own, and what it needs.

    Attributes:
        masked: one more pass per rollout batch, with a masked image. rows: the attention rows of the trained layers.
    """

    factors: Factors | None = None
    term: PerceptionTerm | None = None
    masked: bool = False
    rows: bool = False


def k3(logps: Tensor, other: Tensor, bound: float = MAX_LOG_RATIO) -> Tensor:
    """The estimate of KL(π ‖ other) from π's own tokens, other/π − ln(other/π) − 1, elementwise."""
    gap = (other - logps).clamp(-bound, bound)
    return gap.exp() - gap - 1


def top_tokens(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """`[G, R]` bool: of each completion the `share` of its tokens, rounded up, with the highest values."""
    kept = (mask.sum(dim=1, keepdim=True) * share).ceil()
    order = values.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(values.shape[1], device=order.device).expand_as(order)
    )
    return (rank < kept) & mask
