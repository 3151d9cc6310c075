"""Keeps the attention term's gradient at a stated share of the token loss's."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class GradientBalance(TrainerCallback, ExportableState):
    """The factor on λ that makes ‖∇ λ·attention‖ = share · ‖∇ token‖, as last measured; saved with every checkpoint.

    Until both norms were seen above zero the factor is 1. With the anchor `old` the first inner update, whose attention
    gradient is exactly zero, is passed over.

    Args:
        share: of the attention gradient's norm in the token gradient's; None keeps the factor at 1.
    """

    def __init__(self, share: float | None):
        self.share, self.factor = share, 1.0

    def measured(self, token_norm: float, attention_norm: float) -> None:
        """Take in the norms of the two gradients, the second with λ but without the factor."""
        if self.share is not None and token_norm > 0 and attention_norm > 0:
            self.factor = self.share * token_norm / attention_norm

    def state(self) -> dict[str, dict[str, float | None]]:
        return {"args": {"share": self.share}, "attributes": {"factor": self.factor}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the factor of the checkpoint that the run goes on from."""
        saved: Any = state.stateful_callbacks  # annotated as a list of callbacks, but a dict of their states
        if type(self).__name__ in saved:
            self.factor = saved[type(self).__name__]["attributes"]["factor"]
