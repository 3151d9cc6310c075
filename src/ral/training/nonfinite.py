"""Stops a run before a NaN or infinity reaches the weights, and keeps the batch for `ral replay`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ral.errors import RalError
from ral.models.sharding import configure_sharding, full_state_dict, refuse_sharding, whole
from ral.models.zero3 import left_whole
from ral.training.dumps import MODEL, Dump
from ral.training.exact_resume import ExactResumeTrainer


class NonFiniteError(RalError, ValueError):
    """A non-finite loss or gradient. The weights are unchanged, and the message names the dump."""


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> Tensor:
    """Norm of the gradients of all processes' shards, before they are clipped; 0 where there is none."""
    return total_norm(parameter.grad for parameter in parameters)


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Norm of gradients as one vector, of which processes may have shards."""
    norm: Any = get_total_norm([gradient for gradient in gradients if gradient is not None])
    return whole(norm)


class NonFiniteGuardTrainer(ExactResumeTrainer):
    """A mixin for Trainer classes that stops the run before a non-finite update.

    `compute_loss` must pass every loss to `require_finite_losses`, before the backward pass in which DeepSpeed makes its update.
    """

    def __init__(self, *arguments: Any, **named: Any):
        self._losses: list[Tensor] = []  # of the step's micro-batches so far
        self._in_backward = ExitStack()
        super().__init__(*arguments, **named)
        refuse_sharding(self.accelerator, self.model, self.args)
        configure_sharding(self.accelerator, self.model)

    @abstractmethod
    def dump(self, what: str) -> Dump:
        """Dump the current optimiser step for `ral replay`; `what` names the non-finite value."""

    def complete_gradient(self) -> None:
        """Add to the step's gradient what its backward passes have not left there."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """As Trainer's, but completes and checks the gradient of the whole step before it is clipped."""
        with self._in_backward:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not self.accelerator.sync_gradients:
            return loss
        self.complete_gradient()
        if not self._is_scaled():
            self.require_finite("the gradient's norm", self._gradient_norm(model))
        return loss

    def _is_scaled(self) -> bool:
        """Whether the gradient may have overflowed by being scaled up, in float16: then a scaler steps over it, and scales less.

        What overflows at a scale of 1 does so by itself. DeepSpeed keeps its scale to itself.
        """
        scaler = self.accelerator.scaler
        return self.args.fp16 if self.is_deepspeed_enabled else scaler is not None and scaler.get_scale() > 1

    def _gradient_norm(self, model: Any) -> Tensor:
        """DeepSpeed has made its update by now; but where the norm was not finite it made none, and kept the norm."""
        if self.is_deepspeed_enabled:
            return torch.as_tensor(model.get_global_grad_norm(), device=self.args.device)
        return gradient_norm(model.parameters())

    def require_finite_losses(self, loss: Tensor) -> None:
        """Take the loss of a micro-batch before its backward pass. With the step's last one all of them must be finite.

        One look at a step's losses is one wait for the device, and nothing is updated before the last of them.
        """
        self._losses.append(loss.detach())
        if self.accelerator.sync_gradients:
            losses, self._losses = torch.stack(self._losses), []
            self.require_finite("the loss", losses)
        self._in_backward.enter_context(left_whole(self.accelerator, self.model))

    def require_finite(self, what: str, value: Tensor) -> None:
        """Unless all of `value` is finite in every process: dump the step, and stop all of them before the weights are touched."""
        value = value.detach().reshape(-1)
        if not self.accelerator.reduce((~value.isfinite()).any().float(), reduction="sum"):
            return
        bad = value[~value.isfinite()].tolist()
        own = f"{what} is {bad[0]}" if bad else f"{what} is finite here, but not in every process"
        step = self.state.global_step + 1
        folder = Path(str(self.args.output_dir)) / f"nonfinite-{step}"
        self.dump(own).save(folder, self.args.process_index)
        weights = full_state_dict(self.model_wrapped, self.accelerator)
        if self.is_world_process_zero():
            extract_model_from_parallel(self.model).save_pretrained(folder / MODEL, state_dict=weights)
            processor: Any = self.processing_class
            processor.save_pretrained(folder / MODEL)
        raise NonFiniteError(
            f"step {step}: {own}. The weights are as they were before the step. `ral replay {folder}` runs its batch again and "
            "shows where it becomes non-finite; the run can go on from its last checkpoint with other settings (a lower "
            "learning_rate, or attention_coef in reinforcement) as a new one."
        )
