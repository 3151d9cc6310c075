"""Sharded weights (FSDP2) in a loop whose processes do different work between two updates.

A sharded layer gathers its weights from all processes when it is called, so all have to call it at the same point. Rollouts
are as many steps as their longest completion, and not every process has an image: whole weights are gathered before them.
Fine-tuning makes the same passes everywhere, but for the vision tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import GradientState
from accelerate.utils import GradientAccumulationPlugin, fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from ral.attention.models import family, pretrained, trains_vision, vision_features, vision_tower
from ral.errors import ConfigError

#: Why sharding that gathers a layer's weights again for every pass is refused, in a recipe or by a launcher.
WEIGHTS_GIVEN_BACK = (
    "fsdp gives the weights back after every layer, but processes make rollouts of different lengths and cannot wait for "
    "each other in each of their steps; set version: 2 and reshard_after_forward: false (fsdp_config of the recipe or of the "
    "launcher's file)"
)

#: Why a quantised model is not sharded, in a recipe or by a launcher. accelerate 1.15 says the first of itself.
QUANTISED_SHARDS = (
    "quantization under fsdp: accelerate leaves weights of 4 bits whole on every process, as under DDP, and in another "
    "bnb_4bit_quant_storage mixed precision would take them for numbers; leave fsdp out (recipes/accelerate/ddp.yaml), or "
    "quantization"
)


def refuse_sharding(accelerator: Accelerator, model: nn.Module, args: TrainingArguments) -> None:
    """Raise ConfigError for sharding that cannot be had, or under which no model like this one can be trained.

    It may come from the recipe or from `accelerate launch`, so it is looked up where both have met.
    """
    fsdp, base = _fsdp(accelerator), pretrained(model)
    if args.fsdp and fsdp is None and args.world_size > 1:
        raise ConfigError("fsdp is set, but accelerate shards on accelerators only; leave it out on CPU")
    if fsdp is not None and getattr(base.config, "quantization_config", None) is not None:
        raise ConfigError(QUANTISED_SHARDS)
    if fsdp is not None and trains_vision(base):
        raise ConfigError(
            "freeze_vision=False under fsdp: processes with other images would reduce the vision tower's gradients at "
            "other points and wait for each other for ever; train it under DDP or ZeRO-2, or freeze it"
        )


def refuse_sharded_rollouts(accelerator: Accelerator) -> None:
    """Raise ConfigError for sharding under which processes that make rollouts would wait for each other."""
    fsdp, zero = _fsdp(accelerator), getattr(accelerator.state, "deepspeed_plugin", None)
    if fsdp is not None and (fsdp.fsdp_version != 2 or fsdp.reshard_after_forward):
        raise ConfigError(WEIGHTS_GIVEN_BACK)
    if zero is not None and zero.zero_stage == 3:
        raise ConfigError(
            "ZeRO-3 does not follow a prompt that is packed with its completions through the backward pass; use FSDP2 "
            "(recipes/accelerate/fsdp2.yaml), which shards the same, or ZeRO-2"
        )


def _fsdp(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    return getattr(accelerator.state, "fsdp_plugin", None)


def configure_sharding(accelerator: Accelerator) -> None:
    """Say how FSDP2 is to compute and when to share gradients out; to be called before the model is prepared.

    Weights are computed with in the run's precision. Gradients are added up over processes in float32: in bfloat16, as
    accelerate has it, eight significant bits would be left of the sum. Outputs stay in the precision they are made in.
    Gradients are shared out after every micro-batch; a process would otherwise hold them whole until the last one.
    """
    fsdp = _fsdp(accelerator)
    if fsdp is None or fsdp.fsdp_version != 2:
        return
    if (policy := fsdp.mixed_precision_policy) is not None:
        fsdp.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)
    accumulation = accelerator.gradient_state.plugin_kwargs | {"sync_each_batch": True}
    GradientState(GradientAccumulationPlugin(**accumulation))  # the one there is takes it up


def gather_weights(model: nn.Module) -> None:
    """Let each process call any part of the model as often as it needs, until the next backward pass; all must call this.

    Weights that are not sharded are whole already. FSDP2 keeps what is gathered (`reshard_after_forward: false`).
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()


def gather_vision(model: nn.Module) -> None:
    """Gather the vision tower alone, for passes that all processes make but not all with media.

    It may be sharded in any way; its weights are kept until the next backward pass.
    """
    for module in vision_tower(pretrained(model)).modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def prepare_frozen(accelerator: Accelerator, model: nn.Module, shard: bool = False) -> nn.Module:
    """A frozen model on the policy's device and in its precision; sharded as the policy is under FSDP2, if `shard`.

    What is sharded must be called by all processes at the same points, between `gathered`.
    """
    if shard and accelerator.is_fsdp2:  # which has a mixed precision of its own: under autocast results would differ
        return fsdp2_prepare_model(accelerator, model)
    return accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """The model for as long as it is used; the weights that FSDP2 gathers for it are given back afterwards."""
    try:
        yield model
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def full_state_dict(model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
    """The state dict of a model as accelerate has prepared it, whole on the main process; all must call this."""
    if not isinstance(model, FSDPModule):
        return accelerator.get_state_dict(model)
    return full_on_main(model.state_dict().items(), accelerator)


def full_on_main(named: Iterable[tuple[str, Tensor]], accelerator: Accelerator) -> dict[str, Tensor]:
    """Weights that may be sharded, whole on the main process's CPU; one at a time is whole on every process."""
    weights = {}
    for name, value in named:
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if accelerator.is_main_process:
            weights[name] = whole.contiguous().cpu()
    return weights


def term_gradients(model: nn.Module, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Gradients of one term of the loss, before the backward pass that trains; what the parameters hold is left as it is.

    Under FSDP2 `parameters` are the shards, as the optimiser has them: the gradients are shards, too, of the mean over processes,
    and all processes must call this. Otherwise they are this process's own.
    """
    if not isinstance(model, FSDPModule):
        return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
    held = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    model.set_reshard_after_backward(False)  # the pass that trains needs the weights, too
    try:
        loss.backward(retain_graph=True)
    finally:
        model.set_reshard_after_backward(True)
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, held, strict=True):
        parameter.grad = gradient
    return found


def zero_vision_loss(model: nn.Module) -> Tensor:
    """0, as the vision tower makes it of a blank image: for a pass without images through a tower that is trained.

    Its gradient is 0 as well, but there is one: DDP waits until every process has a gradient for every weight.
    """
    base = pretrained(model)
    blank = {name: value.to(base.device) for name, value in family(base).blank(base.config).items()}
    features = vision_features(model, blank)["image"]
    levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
    return 0 * torch.stack([tensor.sum() for level in levels for tensor in level]).sum()
