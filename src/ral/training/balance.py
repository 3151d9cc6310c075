"""Measures the gradients of the token loss and the attention term, and keeps the second at a stated share of the first."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ral.models.sharding import extra_backward
from ral.objective.terms import Mean


class GradientBalance(TrainerCallback, ExportableState):
    """The factor on λ that makes ‖∇ λ·attention‖ = share · ‖∇ token‖, as last measured; saved with every checkpoint.

    Until both norms were seen above zero the factor is 1. With the anchor `old` the first inner update, whose attention
    gradient is exactly zero, is passed over.

    Args:
        share: of the attention gradient's norm in the token gradient's; None keeps the factor at 1.
    """

    def __init__(self, share: float | None):
        self.share, self.factor = share, 1.0

    def measure(self, model: nn.Module, token: Tensor, attention: Tensor, accelerator: Accelerator) -> dict[str, Mean]:
        """Norms of the two losses' gradients on a micro-batch, and the factor that follows from them.

        All processes must call this. It takes a backward pass for each loss and leaves no gradient behind.

        Args:
            token, attention: scalar losses of this process, whose weights count for all processes; the second with λ, but
                without the factor.

        Returns:
            `grad/token_norm` and `grad/attention_norm`, the latter with the factor, means over processes; where the first is
            not 0 their ratio `grad/attention_to_token`.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norms = []
        for loss in (token, attention):
            with extra_backward(model):
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms.append(torch.stack([g.float().norm() for g in gradients if g is not None]).norm())
            del gradients  # or the next loss's would come to stand beside them
        # The weights of a process count for all, so its own gradient is too large by as many times as there are processes.
        means = accelerator.reduce(torch.stack(norms), reduction="mean") / accelerator.num_processes
        token_norm, attention_norm = means.tolist()
        if self.share is not None and token_norm > 0 and attention_norm > 0:
            self.factor = self.share * token_norm / attention_norm
        figures = {"grad/token_norm": token_norm, "grad/attention_norm": self.factor * attention_norm}
        if token_norm > 0:
            figures["grad/attention_to_token"] = self.factor * attention_norm / token_norm
        return {name: Mean.of(value) for name, value in figures.items()}

    def state(self) -> dict[str, dict[str, float | None]]:
        return {"args": {"share": self.share}, "attributes": {"factor": self.factor}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the factor of the checkpoint that the run goes on from."""
        saved: Any = state.stateful_callbacks  # annotated as a list of callbacks, but a dict of their states
        if type(self).__name__ in saved:
            self.factor = saved[type(self).__name__]["attributes"]["factor"]
