"""Measures the gradients of both losses, and keeps the attention term's at a chosen share of the token loss's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ral.models import zero3
from ral.models.sharding import add_gradient, add_term_gradients
from ral.objective.terms import Mean
from ral.training.nonfinite import total_norm


class GradientBalance(TrainerCallback, ExportableState):
    """The factor on λ that makes ‖∇ λ·attention‖ = share · ‖∇ token‖ in the last measured step. Checkpoints store it.

    The gradients cover a whole optimiser step with all its micro-batches and processes. So the factor depends neither on the
    accumulation nor on the number of processes.

    The factor is 1 until both norms have been above zero. With the anchor `old`, the first inner update is skipped, because its
    attention gradient is exactly zero.

    Memory: a measured step stores one gradient of the trained weights per term, in float32, until its end. Under FSDP2 it stores
    the attention term's shards alone: the pass that trains then leaves the token loss's in the parameters' `grad`, and `finish`
    adds the other. This saves a third of the backward passes, too. It rounds otherwise than one pass for both terms; without
    shards, a measured step stays the same to the last bit.

    Args:
        share: of the attention gradient's norm in the token gradient's; None keeps the factor at 1.
        distils: the loss has terms beside these two, so that what a pass leaves is never the token loss's alone.
    """

    def __init__(self, share: float | None, distils: bool = False):
        self.share, self.distils, self.factor = share, distils, 1.0
        self._parameters: list[nn.Parameter] = []
        self._shards: list[nn.Parameter] | None = None
        self._token: list[Tensor | None] = []
        self._attention: list[Tensor | None] = []

    @property
    def _is_apart(self) -> bool:
        """Whether the pass that trains leaves the gradient of the token loss alone."""
        return self._shards is not None and not self.distils

    def measure(self, model: nn.Module, token: Tensor, attention: Tensor, total: Tensor) -> Tensor:
        """Add the gradients of a micro-batch's two losses to those of the step. All processes must call this.

        Runs backward passes before the pass that trains, and changes no parameter's `grad`.

        Args:
            token, attention: scalar losses of this process, whose weights count for all processes; the second with λ, but
                without the factor. total: the loss to train with, with the factor.

        Returns:
            The value of `total`, for the pass that trains.
        """
        self._parameters = self._shards or [p for p in model.parameters() if p.requires_grad]
        self._attention = add_term_gradients(model, attention, self._parameters, self._attention)
        if self._is_apart:
            return token + (total - token).detach()
        self._token = add_term_gradients(model, token, self._parameters, self._token)
        return total

    def measure_before(self, model: nn.Module, losses: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """As `measure`, where each term needs a pass of its own (`own_passes`), which come before the one that trains.

        Args:
            model: as accelerate has prepared it. losses: makes a pass, and gives the losses of token and attention.
        """
        self._parameters, first = [p for p in model.parameters() if p.requires_grad], not self._token
        add = partial(zero3.add_term_gradients, model, parameters=self._parameters, first=first)
        token, attention = losses()
        self._token = add(token, beside=attention, sums=self._token)
        token, attention = losses()
        self._attention = add(attention, beside=token, sums=self._attention)

    def finish(self, accelerator: Accelerator) -> dict[str, Mean]:
        """Compute the norms of the step's gradients and the new factor, after the step's last backward pass.

        What the step's passes left in the parameters' `grad`, with the last factor or without the attention term, is brought to the
        new factor. Under ZeRO-2 DeepSpeed has made its update by then, and uses the new one from the next step on; under ZeRO-3,
        where gradients are measured first, this comes before the last pass that trains.

        Returns:
            `grad/token_norm` and `grad/attention_norm`, the latter with the factor; where the first is not 0 their ratio
            `grad/attention_to_token`.
        """
        token, attention, before = self._token, self._attention, self.factor
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()  # of gradients in float16
        if self._is_apart:
            token, before = [parameter.grad for parameter in self._parameters], 0.0
        elif accelerator.num_processes > 1 and not any(isinstance(gradient, DTensor) for gradient in token):
            # Shards are means over processes already.
            token, attention = (self._mean(gradients, accelerator) for gradients in (token, attention))
        token_norm, attention_norm = torch.stack([total_norm(gradients) for gradients in (token, attention)]).tolist()
        if self._is_apart:
            token_norm /= scale
        if self.share is not None and 0 < token_norm < math.inf and 0 < attention_norm < math.inf:
            self.factor = self.share * token_norm / attention_norm
        if self.factor != before:
            for parameter, gradient in zip(self._parameters, attention, strict=True):
                if gradient is not None:
                    add_gradient(parameter, gradient, (self.factor - before) * scale)
        self._parameters, self._token, self._attention = [], [], []
        figures = {"grad/token_norm": token_norm, "grad/attention_norm": self.factor * attention_norm}
        if token_norm > 0:
            figures["grad/attention_to_token"] = self.factor * attention_norm / token_norm
        return {name: Mean.of(value) for name, value in figures.items()}

    def _mean(self, gradients: list[Tensor | None], accelerator: Accelerator) -> list[Tensor | None]:
        """Over processes, whose weights count for all of them; a process may have no gradient where another has one."""
        return [
            accelerator.reduce(torch.zeros_like(p, dtype=torch.float32) if g is None else g, reduction="mean")
            for p, g in zip(self._parameters, gradients, strict=True)
        ]

    def state(self) -> dict[str, dict[str, float | None]]:
        return {"args": {"share": self.share}, "attributes": {"factor": self.factor}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the factor of the checkpoint that the run goes on from, and the shards that the optimiser updates."""
        if isinstance(kwargs.get("model"), FSDPModule):  # whose own parameters are whole ones while it is gathered
            self._shards = [p for group in kwargs["optimizer"].param_groups for p in group["params"]]
        saved: Any = state.stateful_callbacks  # annotated as a list of callbacks, but a dict of their states
        if type(self).__name__ in saved:
            self.factor = saved[type(self).__name__]["attributes"]["factor"]
