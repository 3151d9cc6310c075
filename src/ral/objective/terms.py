"""The objective as pure functions: GRPO's token loss, the attention term, and distillation.

Every function takes per-token tensors `[G, R]` of one group, and the `weights [G, R]` of its tokens. One normalisation gives the
weights of a whole optimiser step (all groups, accumulation steps and processes). So the losses of groups simply add up:
L = Σ_groups Σ_tokens w · ℓ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ral.objective.divergence import DIVERGENCES
from ral.objective.token_loss import (
    TOKEN_LOSSES,
    Bounds,
    ImportanceLevel,
    TokenState,
    importance_ratio,
)
from ral.objective.token_loss import StepTotals as StepTotals  # their older address
from ral.objective.token_loss import token_weights as token_weights

ScaleRewards = Literal["group", "batch", "none"]


#: Bound on the log of a ratio of probabilities, π/π_old or π_ref/π, whose exp would overflow; a ratio of 5e8 is far outside of
#: any useful training. Beyond it a token's term is constant. verl bounds both at 20, too.
MAX_LOG_RATIO = 20.0


class Mean(NamedTuple):
    """A weighted sum of a metric; its value is `total / weight` after the sum over groups and processes."""

    total: Tensor
    weight: Tensor

    @classmethod
    def over(cls, values: Tensor, mask: Tensor) -> Mean:
        """Mean of detached `values` where `mask` is true."""
        return cls(torch.where(mask, values.detach(), 0.0).sum(), mask.sum())

    @classmethod
    def of(cls, value: Tensor | float) -> Mean:
        """A single observation, of a group or a step."""
        return cls(torch.as_tensor(value).detach(), torch.tensor(1.0))


class Term(NamedTuple):
    """A loss (scalar) and its metrics."""

    loss: Tensor
    metrics: dict[str, Mean]


def group_advantages(
    rewards: Tensor, scale: ScaleRewards = "group", epsilon: float = 1e-4, batch_std: Tensor | None = None
) -> Tensor:
    """GRPO's advantage A_g = (r_g − mean r) / (std r + ε) inside one group (arXiv 2402.03300, eq. 4).

    Args:
        rewards: `[G]`.
        scale: `"none"` leaves out the division (Dr. GRPO, arXiv 2503.20783); `"batch"` divides by `batch_std`, the standard
            deviation over all groups of the rollout batch (arXiv 2508.08221).

    Returns:
        `[G]`; standard deviations are unbiased ones, as in TRL. All zero where all rewards are equal.
    """
    if bool((rewards == rewards[0]).all()):
        return torch.zeros_like(rewards)  # the mean of equal floats may differ from them in the last bit
    centred = rewards - rewards.mean()
    if scale == "none":
        return centred
    spread = rewards.std() if scale == "group" else batch_std
    assert spread is not None
    return centred / (spread + epsilon)


def importance(logps: Tensor, sampling_logps: Tensor, cap: float) -> Tensor:
    """Weights min(π/π_engine, cap) of tokens that another engine sampled (truncated importance sampling).

    Args:
        logps, sampling_logps: `[G, R]` under the policy π that is trained, and under the engine that sampled the tokens, π_engine.

    Returns:
        `[G, R]`, detached.
    """
    return (logps - sampling_logps).detach().exp().clamp_max(cap)


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
    sapo_temperatures: tuple[float, float] = (1.0, 1.05),
    loss_type: str = "dapo",
    importance_sampling_level: ImportanceLevel = "token",
    chosen: Tensor | None = None,
    factors: Tensor | None = None,
    ref_logps: Tensor | None = None,
    beta: float = 0.0,
) -> Term:
    """Token objective with an optional KL to a reference (arXiv 2402.03300, eq. 3; KL estimator k3).

    Args:
        logps, old_logps, ref_logps: `[G, R]`. advantages: `[G]`. weights: `[G, R]`, see `token_weights`.
        epsilon, epsilon_high, delta, sapo_temperatures: see `ral.objective.token_loss.Bounds`; ε_high = ε where None.
        loss_type: a name in `TOKEN_LOSSES`. Its weights are `weights`.
        importance_sampling_level: see `importance_ratio`.
        chosen: `[G, R]` bool, the tokens that are rewarded; None: all. The KL counts all.
        factors: `[G, R]` ≥ 0 on the advantages; None: 1.
        beta: of the KL estimate.

    Log-ratios are at least float32 and bounded by `MAX_LOG_RATIO`, so that value and gradient are finite: an infinite ratio
    would make A = 0 not a number.
    """
    mask = weights > 0
    logps = logps.to(torch.promote_types(logps.dtype, torch.float32))
    ratio = importance_ratio((logps - old_logps).clamp(max=MAX_LOG_RATIO), mask, importance_sampling_level)
    bounds = Bounds(epsilon, epsilon if epsilon_high is None else epsilon_high, delta, *sapo_temperatures)
    state = TokenState(ratio, logps, advantages[:, None], bounds)
    per_token, clipped = TOKEN_LOSSES[loss_type].per_token(state)
    seen = mask if ratio.shape == mask.shape else mask.any(dim=1, keepdim=True)
    metrics = {"ratio": Mean.over(ratio, seen)}
    if clipped is not None:
        metrics["clip_fraction"] = Mean.over(clipped.float(), seen)
    if factors is not None:  # every loss type is linear in the size of the advantage
        per_token = per_token * factors
    if chosen is not None:
        per_token = torch.where(chosen, per_token, 0.0)
    if ref_logps is not None:
        gap = (ref_logps - logps).clamp(max=MAX_LOG_RATIO)
        kl = gap.exp() - gap - 1
        metrics["kl"] = Mean.over(kl, mask)
        per_token = per_token + beta * kl
    return Term((per_token * weights).sum(), metrics)


def entropy_bonus(entropy: Tensor, weights: Tensor) -> Tensor:
    """−Σ w · H, which is lower the more even the distributions of tokens are.

    Args:
        entropy: `[G, R]` in nats, with gradient. weights: `[G, R]` of a mean.
    """
    return -(entropy * weights).sum()


def attention_loss(
    rows: Tensor,
    target: Tensor,
    advantages: Tensor,
    weights: Tensor,
    divergence: str = "jsd",
) -> Term:
    """L_attn = Σ w · A · D(p_θ ‖ target): pulled to the target where A > 0, pushed from it where A < 0.

    Args:
        rows, target: `[G, R, K]`, the target detached. advantages: `[G]`. weights: `[G, R]`; rows of weight 0 reach neither loss
            nor gradient, whatever they and their targets hold.
        divergence: D by its name in `ral.objective.divergence.DIVERGENCES`; `jsd` is the paper's.
    """
    mask = weights > 0
    distance = torch.where(mask, DIVERGENCES[divergence](rows, target), 0.0)
    per_token = advantages[:, None] * distance
    metrics = {
        f"attention/{divergence}_positive": Mean.over(distance, mask & (advantages > 0)[:, None]),
        f"attention/{divergence}_negative": Mean.over(distance, mask & (advantages < 0)[:, None]),
    }
    return Term((per_token * weights).sum(), metrics)


def cancelled_share(signal: Tensor, completions: Sequence[Tensor], sees_itself: bool) -> Mean:
    """Share of the signal on attention rows that cancels because rollouts of a group share their context.

    Rows whose context is the same are the same function of the policy, so only the sum of what pulls at them counts:
    1 − Σ_c ‖Σ_{g ∈ c} s_g‖ / Σ_g ‖s_g‖ over the classes c of equal contexts. As Σ_g A_g = 0 it is 1 where all completions agree.

    Args:
        signal: `[G, R, K]` gradient of the loss in the rows. completions: G token sequences.
        sees_itself: whether a row's context includes its own token (`attention_query="token"`).

    Returns:
        The share, weighing as one group; weight 0 where there is no signal.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(list(completions), batch_first=True, padding_value=-1).cpu()
    classes = [torch.zeros(len(tokens), dtype=torch.long)]  # of every row, for contexts of so many tokens
    for newest in tokens.unbind(dim=1):  # on the host: how many classes there are is a value
        classes.append(torch.stack([classes[-1], newest], dim=1).unique(dim=0, return_inverse=True)[1])
    of_rows = torch.stack(classes[1:] if sees_itself else classes[:-1]).to(signal.device)  # [R, G]
    belongs = torch.nn.functional.one_hot(of_rows, len(tokens)).to(signal.dtype)  # [R, G, classes]
    left = (belongs.transpose(1, 2) @ signal.transpose(0, 1)).norm(dim=-1).sum()
    total = signal.norm(dim=-1).sum()
    return Mean(torch.where(total > 0, 1 - left / total, 0.0), (total > 0).float())


def distillation_loss(divergence: Tensor, weights: Tensor, name: str) -> Term:
    """Σ w · D, without advantage: the student is pulled to the teacher on all of its rollouts.

    Args:
        divergence, weights: `[G, R]`; what has weight 0 reaches neither loss nor gradient. name: what the mean divergence is
            logged under.
    """
    mask = weights > 0
    return Term((torch.where(mask, divergence, 0.0) * weights).sum(), {name: Mean.over(divergence, mask)})
