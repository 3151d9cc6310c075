"""Lock-step: processes that share a model out by layers make equally many passes of it, whatever each of them samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ral.attention import forward_groups, prepare_prompt
from ral.attention.models import pretrained
from ral.models.gathering import gives_back
from ral.rollouts.sampling import evaluating


@contextmanager
def lock_step(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Let each process make as many passes of `model` inside as it needs. All processes must enter together.

    If weights are given back after every layer, all processes make each pass at the same time, until none needs one any more. A process
    that is done makes passes of two tokens. What processes compute may differ, as they exchange weights only. Before each pass
    they add up who needs it; only a process that is done waits for the sum.
    """
    if not gives_back(accelerator):
        yield
        return

    def needed(here: bool) -> Tensor:
        return accelerator.reduce(torch.tensor(float(here), device=accelerator.device), reduction="sum")  # type: ignore[return-value]

    def before_pass(*_: object) -> None:
        needed(True)

    hook = model.register_forward_pre_hook(before_pass, prepend=True)  # before FSDP2 gathers anything
    try:
        yield
    finally:
        hook.remove()
    with evaluating(model), torch.no_grad():
        while needed(False):
            _idle_pass(model)


def _idle_pass(model: nn.Module) -> None:
    """The shortest pass, whose result nobody needs: it takes part in what a pass gathers."""
    token = torch.zeros(1, dtype=torch.long, device=pretrained(model).device)
    forward_groups(model, [prepare_prompt(model, {"input_ids": token[None]})], [[token]], layers=())
