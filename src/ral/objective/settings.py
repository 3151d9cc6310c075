"""`GRPOFields`: the settings of GRPO's token loss and of its reference, declared once.

Names and meanings are TRL's. `GRPO_READERS` says what reads each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ral.data.settings import setting
from ral.data.unread import Reader, given
from ral.errors import ConfigError
from ral.objective.needs import Needs
from ral.objective.terms import ScaleRewards
from ral.objective.token_loss import TOKEN_LOSSES, ImportanceLevel, TokenLoss


def _loss(uses: Callable[[TokenLoss], bool]) -> tuple[Reader]:
    """Read by the loss types of which `uses` is true."""
    names = [name for name, loss in TOKEN_LOSSES.items() if uses(loss)]
    advice = f"loss_type to one that reads it ({', '.join(names)})"
    return (Reader(("loss_type",), lambda settings: uses(TOKEN_LOSSES[settings.loss_type]), advice),)


_MOVED = (given("sync_ref_model", "sync_ref_model to true"),)
_REFERENCE = Reader(
    ("beta", "attention_anchor", "attention_coef"),
    lambda settings: Needs.of(settings).reference,
    "beta above 0, or attention_anchor to ref with attention_coef above 0",
)

#: What reads each setting.
GRPO_READERS: dict[str, tuple[Reader, ...]] = {
    "epsilon": _loss(lambda loss: loss.uses_epsilon),
    "epsilon_high": _loss(lambda loss: loss.uses_epsilon_high),
    "delta": _loss(lambda loss: loss.uses_delta),
    "sapo_temperature_pos": _loss(lambda loss: loss.uses_temperatures),
    "sapo_temperature_neg": _loss(lambda loss: loss.uses_temperatures),
    "sync_ref_model": (_REFERENCE,),
    "ref_model_mixup_alpha": _MOVED,
    "ref_model_sync_steps": _MOVED,
}


@dataclass
class GRPOFields:
    """The settings of GRPO's token loss and of its reference, as a base class of larger settings."""

    loss_type: str = setting(
        "dapo",
        "Token loss and its normalisation: grpo (per completion), dapo (per token), dr_grpo (constant), bnpo (per token of a "
        "micro-batch), cispo (arXiv 2506.13585), sapo (2511.20347) or luspo (2602.05261).",
    )
    importance_sampling_level: ImportanceLevel = setting(
        "token",
        "Ratio of each token, or one of each completion: sequence (GSPO, arXiv 2507.18071, with loss_type=grpo).",
    )
    epsilon: float = setting(0.2, "The ratio is clipped to [1 − ε, 1 + ε_high].")
    epsilon_high: float | None = setting(
        None, "Upper clip; ε if not given (DAPO: 0.28). Of cispo the largest ratio itself (ScaleRL: 5)."
    )
    delta: float | None = setting(
        None,
        "Largest ratio of tokens with a negative advantage (two-sided clipping, arXiv 2505.07291); None: unbounded.",
    )
    sapo_temperature_pos: float = setting(1.0, "Slope of sapo's gate where the advantage is positive.")
    sapo_temperature_neg: float = setting(1.05, "Slope of sapo's gate elsewhere.")
    scale_rewards: ScaleRewards = setting(
        "group",
        "Divide advantages by the standard deviation of the group, of the whole batch (arXiv 2508.08221), or not (none).",
    )
    mask_truncated_completions: bool = setting(
        False, "Leave truncated completions out of every term of the loss (DAPO, arXiv 2503.14476)."
    )
    top_entropy_quantile: float = setting(
        1.0, "Share of tokens, those of highest entropy, that the advantage acts on (arXiv 2506.01939: 0.2); 1: all."
    )
    entropy_coef: float = setting(0.0, "Weight of the mean entropy of the tokens' distributions, as a bonus.")
    beta: float = setting(0.04, "Weight of the KL to the start model; 0 loads no reference.")
    sync_ref_model: bool = setting(
        False, "Move the reference towards the policy every ref_model_sync_steps (TR-DPO, arXiv 2404.09656)."
    )
    ref_model_mixup_alpha: float = setting(0.6, "Share of the policy in the moved reference.")
    ref_model_sync_steps: int = setting(512, "Optimiser steps between two moves of the reference.")

    def check_grpo(self) -> None:
        """Raise ConfigError for a value out of its range, and for one that does not fit the loss type."""
        self._check_ranges_of_grpo()
        loss, named = TOKEN_LOSSES[self.loss_type], f"loss_type={self.loss_type!r}"
        if loss.needs_epsilon_high and self.epsilon_high is None:
            raise ConfigError(
                f"{named} needs epsilon_high: there it is the largest ratio itself, not its distance from 1 (ScaleRL: 5.0)"
            )
        high = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.delta <= high:
            raise ConfigError(
                f"delta={self.delta} is not above 1 + ε_high = {high:g}, where the ratio is clipped anyway; raise it"
            )
        if loss.level not in (None, self.importance_sampling_level):
            raise ConfigError(f"{named} is defined for whole completions; set importance_sampling_level={loss.level}")

    def _check_ranges_of_grpo(self) -> None:
        for name in ("beta", "epsilon", "entropy_coef"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("sapo_temperature_pos", "sapo_temperature_neg", "ref_model_sync_steps"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise ConfigError(f"ref_model_mixup_alpha must be in (0, 1], got {self.ref_model_mixup_alpha}")
        if not 0 <= self.top_entropy_quantile <= 1:
            raise ConfigError(f"top_entropy_quantile must be in [0, 1], got {self.top_entropy_quantile}")
