"""Token losses: a registry of loss types, by the setting `loss_type`.

A loss type answers two questions: what is the loss of a token, and how much does a token count in the optimiser step? To add
one, write a function for the first and choose or write one for the second, and put both into `TOKEN_LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ImportanceLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class Bounds:
    """Bounds of the ratio π/π_old.

    Attributes:
        epsilon, epsilon_high: the ratio is clipped to [1 − ε, 1 + ε_high]; for `cispo`, ε_high itself is the upper bound.
        delta: upper bound where A < 0 (two-sided clipping, INTELLECT-2, arXiv 2505.07291); None: unbounded.
        sapo_temperature_pos, sapo_temperature_neg: slopes of SAPO's gate, for A > 0 and for A ≤ 0.
    """

    epsilon: float
    epsilon_high: float
    delta: float | None = None
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05


@dataclass(frozen=True)
class TokenState:
    """The tokens of one group, as a token loss sees them.

    Attributes:
        ratio: π/π_old, with gradient: `[G, R]`, or `[G, 1]` of whole completions.
        logps: `[G, R]`, with gradient. advantages: `[G, 1]`.
    """

    ratio: Tensor
    logps: Tensor
    advantages: Tensor
    bounds: Bounds


def clipped(state: TokenState) -> tuple[Tensor, Tensor]:
    """−min(ρ·A, clip(ρ, 1 − ε, 1 + ε_high)·A) (PPO; GRPO, arXiv 2402.03300, eq. 3), with ρ ≤ δ if δ is given."""
    ratio, advantages, bounds = state.ratio, state.advantages, state.bounds
    low, high = 1 - bounds.epsilon, 1 + bounds.epsilon_high
    bounded = ratio if bounds.delta is None else ratio.clamp(max=bounds.delta)
    loss = -torch.min(bounded * advantages, ratio.clamp(low, high) * advantages)
    return loss, ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))


def truncated(state: TokenState) -> tuple[Tensor, Tensor]:
    """−min(ρ, ε_high)·A·log π, no gradient through the ratio ρ (CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4)."""
    bound, advantages = state.bounds.epsilon_high, state.advantages
    loss = -state.ratio.clamp(max=bound).detach() * advantages * state.logps
    return loss, (state.ratio > bound) & (advantages > 0)


def gated(state: TokenState) -> tuple[Tensor, None]:
    """−(4/τ)·σ(τ·(ρ − 1))·A, a soft gate in place of the clip (SAPO, arXiv 2511.20347)."""
    bounds, advantages = state.bounds, state.advantages
    slope = torch.where(advantages > 0, bounds.sapo_temperature_pos, bounds.sapo_temperature_neg)
    return -torch.sigmoid(slope * (state.ratio - 1)) * 4 / slope * advantages, None


@dataclass(frozen=True)
class StepTotals:
    """Numbers that the weights of tokens are divided by.

    Attributes:
        completions, tokens: in one optimiser step, over all groups, accumulation steps and processes.
        batch_tokens: in the micro-batch of one process; None: the step is one micro-batch.
        batches: micro-batches in the step, over all processes.
    """

    completions: float
    tokens: float
    batch_tokens: int | None = None
    batches: int = 1


#: Of a mask `[G, R]`, the step's totals and the longest completion allowed: the weight of every token, `[G, R]` float32.
Weights = Callable[[Tensor, StepTotals, int], Tensor]


def per_completion(mask: Tensor, totals: StepTotals, longest: int) -> Tensor:
    """The mean over the tokens of a completion, then over completions."""
    return mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1) / totals.completions


def per_token(mask: Tensor, totals: StepTotals, longest: int) -> Tensor:
    """The mean over all tokens of the step."""
    return mask.float() / max(1, totals.tokens)


def per_batch_token(mask: Tensor, totals: StepTotals, longest: int) -> Tensor:
    """The mean over the tokens of a micro-batch, then over micro-batches."""
    tokens = totals.tokens if totals.batch_tokens is None else totals.batch_tokens
    return mask.float() / max(1, tokens) / totals.batches


def by_constant(mask: Tensor, totals: StepTotals, longest: int) -> Tensor:
    """The sum over tokens, divided by completions × the longest completion allowed."""
    return mask.float() / (totals.completions * longest)


def by_length(mask: Tensor, totals: StepTotals, longest: int) -> Tensor:
    """The sum over the tokens of a completion, then the mean over completions."""
    return mask.float() / totals.completions


@dataclass(frozen=True)
class TokenLoss:
    """A loss type.

    Attributes:
        per_token: the loss of every token, `[G, R]` or `[G, 1]`, and which of them are clipped; None if it clips none.
        weights: how much each token counts, in the attention term as well.
        uses_epsilon, uses_epsilon_high, uses_delta, uses_temperatures: whether it reads these bounds. needs_epsilon_high: whether it has no default for it.
        level: the only `importance_sampling_level` that it is defined for; None: both.
    """

    per_token: Callable[[TokenState], tuple[Tensor, Tensor | None]]
    weights: Weights
    uses_delta: bool = False
    uses_epsilon: bool = True
    uses_epsilon_high: bool = True
    uses_temperatures: bool = False
    needs_epsilon_high: bool = False
    level: ImportanceLevel | None = None


#: By the setting `loss_type`; names are TRL's.
TOKEN_LOSSES: dict[str, TokenLoss] = {
    "grpo": TokenLoss(clipped, per_completion, uses_delta=True),  # arXiv 2402.03300
    "dapo": TokenLoss(clipped, per_token, uses_delta=True),  # arXiv 2503.14476
    "dr_grpo": TokenLoss(clipped, by_constant, uses_delta=True),  # arXiv 2503.20783
    "bnpo": TokenLoss(clipped, per_batch_token, uses_delta=True),  # TRL's; dapo, but for its divisor
    "cispo": TokenLoss(truncated, per_token, uses_epsilon=False, needs_epsilon_high=True),  # arXiv 2506.13585
    "sapo": TokenLoss(
        gated, per_completion, uses_epsilon=False, uses_epsilon_high=False, uses_temperatures=True
    ),  # arXiv 2511.20347
    "luspo": TokenLoss(clipped, by_length, uses_delta=True, level="sequence"),  # arXiv 2602.05261
}


def token_weights(mask: Tensor, totals: StepTotals, loss_type: str, max_completion_length: int) -> Tensor:
    """Weight of every token in the step's loss, by the loss type.

    Args:
        mask: `[G, R]` bool of one group, true on the tokens that count.

    Returns:
        `[G, R]` float32, zero where the mask is false.
    """
    return TOKEN_LOSSES[loss_type].weights(mask, totals, max_completion_length)


def importance_ratio(log_ratio: Tensor, mask: Tensor, level: ImportanceLevel) -> Tensor:
    """π/π_old of every token, `[G, R]`, or its geometric mean over a completion, `[G, 1]` (GSPO, arXiv 2507.18071, eq. 7).

    Args:
        log_ratio, mask: `[G, R]`.
    """
    if level == "token":
        return log_ratio.exp()
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (torch.where(mask, log_ratio, 0.0).sum(dim=1, keepdim=True) / lengths).exp()
