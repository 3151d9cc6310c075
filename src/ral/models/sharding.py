"""Sharding: what is refused, how a model is prepared for it, and how its weights and gradients are read.

`ral.models.gathering` says what processes gather of a sharded model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from accelerate.utils import (
    GradientAccumulationPlugin,
    extract_model_from_parallel,
    fsdp2_canonicalize_names,
    fsdp2_prepare_model,
)
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from ral.attention.models import family, is_part, is_sharded, pretrained, trains_vision, vision_features
from ral.errors import ConfigError
from ral.models import zero3
from ral.models.gathering import fsdp_plugin, gathered_units, unit_classes
from ral.models.zero3 import is_zero3, refuse_zero3, shared_out, whole_weight

#: Why a quantised model is not sharded, in a recipe or by a launcher. accelerate 1.15 says the first of itself.
QUANTISED_SHARDS = (
    "quantization under fsdp: accelerate leaves weights of 4 bits whole on every process, as under DDP, and in another "
    "bnb_4bit_quant_storage mixed precision would take them for numbers; leave fsdp out (recipes/accelerate/ddp.yaml), or "
    "quantization"
)

#: Parts of the names (`TrainingArguments.optim`) of optimisers that do not step over shards: transformers' Adafactor mixes its own
#: plain tensors with them, and bitsandbytes has no kernel for them.
WHOLE_OPTIMISERS = ("adafactor", "ademamix", "lion", "paged", "rmsprop_bnb", "adamw_8bit", "adamw_bnb_8bit")


def refuse_sharding(accelerator: Accelerator, model: nn.Module, args: TrainingArguments) -> None:
    """Raise ConfigError for sharding that cannot be had, or under which no model like this one can be trained.

    It may come from the recipe or from `accelerate launch`, so it is looked up where both have met.
    """
    refuse_zero3(accelerator, model)
    fsdp, base = fsdp_plugin(accelerator), pretrained(model)
    if args.fsdp and fsdp is None and args.world_size > 1:
        raise ConfigError("fsdp is set, but accelerate shards on accelerators only; leave it out on CPU")
    if fsdp is not None and getattr(base.config, "quantization_config", None) is not None:
        raise ConfigError(QUANTISED_SHARDS)
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise ConfigError(
            "fsdp in its first version keeps no part of a model gathered, as rollouts and attention need; set version: 2 "
            "(fsdp_config of the recipe, or fsdp_version in the launcher's file)"
        )
    optimiser = OptimizerNames(args.optim).value
    if fsdp is not None and any(part in optimiser for part in WHOLE_OPTIMISERS):
        raise ConfigError(
            f"optim={optimiser} under fsdp: it cannot update sharded weights, and would fail in the first step; use adamw_torch, or "
            "adamw_torch_8bit with torchao, or leave fsdp out"
        )
    if fsdp is not None and fsdp.transformer_cls_names_to_wrap is not None and trains_vision(base):
        raise ConfigError(
            f"transformer_layer_cls_to_wrap={fsdp.transformer_cls_names_to_wrap} with freeze_vision=False: a vision tower that is "
            "trained has to be sharded as one unit; leave transformer_layer_cls_to_wrap out"
        )


def configure_sharding(accelerator: Accelerator, model: nn.Module) -> None:
    """Say how FSDP2 is to shard and to compute, and when to share gradients out; to be called before the model is prepared.

    Units are what `unit_classes` says, unless the launcher's file names others. Weights are computed with in the run's precision. Gradients are added up over processes in float32: in bfloat16, as
    accelerate has it, eight significant bits would be left of the sum. Outputs stay in the precision they are made in.
    Gradients are shared out after every micro-batch; a process would otherwise hold them whole until the last one.
    """
    fsdp = fsdp_plugin(accelerator)
    if fsdp is None or fsdp.fsdp_version != 2:
        return
    if fsdp.transformer_cls_names_to_wrap is None:
        fsdp.transformer_cls_names_to_wrap = unit_classes(model)
    if (policy := fsdp.mixed_precision_policy) is not None:
        fsdp.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)
    accumulation = accelerator.gradient_state.plugin_kwargs | {"sync_each_batch": True}
    GradientState(GradientAccumulationPlugin(**accumulation))  # the one there is takes it up


def computing_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """The dtype in which FSDP2 gathers weights and computes with them; None for their own."""
    fsdp = fsdp_plugin(accelerator)
    policy = None if fsdp is None else fsdp.mixed_precision_policy
    return None if policy is None else policy.param_dtype  # type: ignore[union-attr]


def prepare_frozen(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """A frozen model on the policy's device and in its precision. Where the policy is sharded, so is it, and gives every layer back.

    What is sharded must be called by all processes at the same points, between `gather_kept`.
    """
    if is_zero3(accelerator):
        return shared_out(accelerator, model)
    if fsdp_plugin(accelerator) is None:
        return accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
    # FSDP2 has a mixed precision of its own: under autocast results would differ.
    plugin: Any = accelerator.state.fsdp_plugin
    before = plugin.transformer_cls_names_to_wrap, plugin.cpu_ram_efficient_loading
    plugin.transformer_cls_names_to_wrap = unit_classes(model)
    # What has no weights yet has none to send.
    plugin.cpu_ram_efficient_loading &= not any(p.is_meta for p in model.parameters())
    try:
        sharded: Any = fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.transformer_cls_names_to_wrap, plugin.cpu_ram_efficient_loading = before
    sharded.set_reshard_after_forward(True)
    return sharded  # type: ignore[no-any-return]


def full_state_dict(model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
    """The state dict of a model as accelerate has prepared it, whole on the main process; all must call this.

    Of a sharded model with an adapter, it holds the trained weights alone: they are what is saved.
    """
    if not is_sharded(model):
        return accelerator.get_state_dict(model)
    model = extract_model_from_parallel(model)
    state = held_state(model)
    if isinstance(model, PeftModel):
        named = fsdp2_canonicalize_names(dict(model.named_parameters()))
        state = {name: value for name, value in state.items() if name in named and named[name].requires_grad}
    return full_on_main(state.items(), accelerator)


def held_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as this process has it: whole weights, or the shards that `whole` takes."""
    state: dict[str, Tensor] = model.state_dict()
    # Those of ZeRO-3 are the parameters themselves, which a state dict does not hold.
    parts = {name: p for name, p in model.named_parameters(remove_duplicate=False) if is_part(p)}
    return {name: parts.get(name, value) for name, value in state.items()}


def full_on_main(named: Iterable[tuple[str, Tensor]], accelerator: Accelerator) -> dict[str, Tensor]:
    """Weights that may be sharded, whole on the main process's CPU; one at a time is whole on every process."""
    weights = {}
    for name, value in named:
        gathered = whole(value)
        if accelerator.is_main_process:
            weights[name] = gathered.contiguous().cpu()
    return weights


def whole(value: Tensor) -> Tensor:
    """A tensor that may be sharded, whole; all processes must call this for one that is."""
    return value.full_tensor() if isinstance(value, DTensor) else whole_weight(value)


def own_passes(model: nn.Module) -> bool:
    """Whether every term whose gradient is measured needs a pass of its own, before the one that trains."""
    return is_sharded(model) and not isinstance(model, FSDPModule)


def add_term_gradients(
    model: nn.Module, loss: Tensor, parameters: Sequence[nn.Parameter], sums: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Sums of gradients of one term of the loss, with those of one more pass; what the parameters hold is left as it is.

    To be called before the backward pass that trains. Under FSDP2 `parameters` are the shards, as the optimiser has them: the
    gradients are shards, too, of the mean over processes, and all processes must call this. Otherwise they are this process's
    own, in float32.

    Args:
        sums: of the passes so far, one per parameter; changed in place. Empty before the first.
    """
    sums = sums or [None] * len(parameters)
    if not isinstance(model, FSDPModule):
        return _added(sums, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
    held = [parameter.grad for parameter in parameters]
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total  # each unit adds its own as soon as it is done, so that no pass's exist as a whole
    kept = gathered_units(model)  # the pass that trains needs them, too, and would not gather them
    for unit in kept:
        unit.set_reshard_after_backward(False, recurse=False)
    try:
        loss.backward(retain_graph=True)
    finally:
        for unit in kept:
            unit.set_reshard_after_backward(True, recurse=False)
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, held, strict=True):
        parameter.grad = gradient
    return found


def _added(sums: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums of gradients, in float32; the first are taken as they are."""
    wide = [None if gradient is None else gradient.float() for gradient in found]
    return [a if b is None else b if a is None else a.add_(b) for a, b in zip(sums, wide, strict=True)]


def add_gradient(parameter: nn.Parameter, gradient: Tensor, weight: float) -> None:
    """Add to what a parameter holds a gradient as `add_term_gradients` gives it; nothing where it holds none."""
    if is_part(parameter):
        zero3.add_gradient(parameter, gradient, weight)
    elif parameter.grad is not None:
        parameter.grad.add_(gradient, alpha=weight)


def zero_vision_loss(model: nn.Module) -> Tensor:
    """0, as the vision tower makes it of a blank image: for a pass without images through a tower that is trained.

    Its gradient is 0 as well, but there is one: DDP waits until every process has a gradient for every weight.
    """
    base = pretrained(model)
    blank = {name: value.to(base.device) for name, value in family(base).blank(base.config).items()}
    features = vision_features(model, blank)["image"]
    levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
    return 0 * torch.stack([tensor.sum() for level in levels for tensor in level]).sum()
