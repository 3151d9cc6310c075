"""`GRPOFields`: the settings of GRPO's token loss and of its reference, declared once.

Names and meanings are TRL's. A combination in which a setting would do nothing is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from ral.data.settings import setting
from ral.errors import ConfigError
from ral.objective.terms import ScaleRewards
from ral.objective.token_loss import TOKEN_LOSSES, ImportanceLevel


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

    def check_grpo(self, *, uses_reference: bool) -> None:
        """Raise ConfigError for a value out of its range, and for a setting that would do nothing beside the others.

        Args:
            uses_reference: whether a term of the run compares with the reference.
        """
        self._check_ranges_of_grpo()
        loss, named = TOKEN_LOSSES[self.loss_type], f"loss_type={self.loss_type!r}"
        if loss.needs_epsilon_high and self.epsilon_high is None:
            raise ConfigError(
                f"{named} needs epsilon_high: there it is the largest ratio itself, not its distance from 1 (ScaleRL: 5.0)"
            )
        if not loss.uses_epsilon_high and self.epsilon_high is not None:
            raise ConfigError(
                f"epsilon_high={self.epsilon_high} does nothing with {named}, which clips nothing; leave it out"
            )
        if self.delta is not None:
            high = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
            if not loss.uses_delta:
                raise ConfigError(
                    f"delta={self.delta} does nothing with {named}, which has bounds of its own; leave it out"
                )
            if self.delta <= high:
                raise ConfigError(
                    f"delta={self.delta} is not above 1 + ε_high = {high:g}, where the ratio is clipped anyway; raise it"
                )
        if self.sync_ref_model and not uses_reference:
            raise ConfigError(
                "sync_ref_model moves the reference, but nothing compares with it; set beta above 0 or attention_anchor=ref, "
                "or leave sync_ref_model out"
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
