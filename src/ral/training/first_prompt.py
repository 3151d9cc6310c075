"""Checks on a run's first prompt: the self-check of the model's computation, and the cost of its way to run."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from torch import nn

from ral.attention import Prompt
from ral.attention.models import pretrained, resolve_layers, why_repeated
from ral.attention.selfcheck import Distances, measure, repeated_cost, settle
from ral.config import RALConfig
from ral.rollouts.sampling import evaluating

logger = logging.getLogger(__name__)

_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_way(
    accelerator: Accelerator, model: nn.Module, reference: nn.Module | None, prompt: Prompt, args: RALConfig
) -> None:
    """Compare the packed row, the prompt repeated and the model's own logits on `prompt`; all processes must call this.

    Raises ConfigError where the model's own logits are others; a packed row that differs is given up with a warning.
    """
    base = pretrained(model)
    with evaluating(model):
        own = measure(model, prompt, resolve_layers(base, args.attention_layers))
    found = Distances.of(accelerator.gather(own[None]).amax(dim=0))
    precision = _PRECISION.get(accelerator.mixed_precision, base.dtype)
    settle(found, [model] if reference is None else [model, reference], precision)
    if reason := why_repeated(model):
        times = repeated_cost(len(prompt.input_ids), args.num_generations, args.max_completion_length)
        logger.warning(
            "%s: every completion is computed behind a copy of its prompt, as %s: up to %.1f times the tokens of a packed row",
            type(base).__name__, reason, times,
        )  # fmt: skip
