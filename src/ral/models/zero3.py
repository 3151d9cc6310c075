"""DeepSpeed ZeRO-3: how its parts of weights are read and written, and what it needs and cannot do.

DeepSpeed turns every parameter into an empty one that knows this process's part. A module gathers its own parameters when it is
called, forwards and backwards, and gives them back; all processes must call the same modules in the same order. Outside of
such calls the functions here gather a parameter, and all processes must call them. On what is not a part they do nothing.

- The vision tower, which not every process calls, is left whole: DeepSpeed does not see it (`left_whole`).
- One graph serves one backward pass: the hooks that gather count the passes. So each term whose gradient is measured has its own
  forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers.integrations import unset_hf_deepspeed_config

from ral.attention.models import is_part, pretrained, trains_vision, vision_tower
from ral.errors import ConfigError

_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_zero3(accelerator: Accelerator) -> bool:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


# --- settings -------------------------------------------------------------------------------------------------------


def refuse_zero3(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise ConfigError for a model that cannot be trained under ZeRO-3."""
    if not is_zero3(accelerator):
        return
    if trains_vision(pretrained(model)):
        raise ConfigError(
            "ZeRO-3 with freeze_vision=False: processes without an image would not gather the vision tower, and the others would "
            "wait for them; use FSDP2 (recipes/accelerate/full-shard.yaml), ZeRO-2, or freeze_vision=True"
        )
    if getattr(pretrained(model).config, "quantization_config", None) is not None:
        raise ConfigError(
            "quantization under ZeRO-3: quantised weights are not shared out; leave deepspeed out "
            "(recipes/accelerate/ddp.yaml), or quantization"
        )
    _refuse_parts(model)


def _refuse_parts(model: nn.Module) -> None:
    if any(is_part(parameter) for parameter in model.parameters()):
        raise ConfigError(
            "a model was shared out by ZeRO-3 while it was loaded, and is needed whole at first; give the trainer its folder or hub "
            "id, or call transformers.integrations.unset_hf_deepspeed_config() before you load it"
        )


def refuse_measured_gradients(accelerator: Accelerator, steps: int) -> None:
    """Raise ConfigError for gradients of one term at a time (`gradient_norm_steps`) that DeepSpeed does not tell."""
    if not steps or not is_zero3(accelerator):
        return
    offloading = _settings(accelerator).get("offload_optimizer") or {}
    if accelerator.mixed_precision == "fp16" or offloading.get("device", "none") != "none":
        raise ConfigError(
            f"gradient_norm_steps={steps} under ZeRO-3 with offload_optimizer or fp16: DeepSpeed does not tell the gradients of one "
            "term at a time there; set gradient_norm_steps=0 and leave attention_share out, or use bf16 without offloading"
        )


def _settings(accelerator: Accelerator) -> dict[str, Any]:
    plugin: Any = accelerator.state.deepspeed_plugin
    return plugin.deepspeed_config["zero_optimization"]  # type: ignore[no-any-return]


def read_whole() -> None:
    """Let transformers load models whole from now on: it would share their weights out as soon as it reads them."""
    unset_hf_deepspeed_config()


# --- models ---------------------------------------------------------------------------------------------------------


@contextmanager
def left_whole(accelerator: Accelerator, model: nn.Module, *parts: nn.Module) -> Iterator[None]:
    """Hide the vision tower and other `parts` from DeepSpeed while it goes through the model's modules and parameters.

    They can be called all the same. Every process has them whole, on its device and in the precision of the run.
    """
    if not is_zero3(accelerator):
        yield
        return
    hidden = {*vision_tower(pretrained(model)).children(), *parts}
    places = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if child in hidden and owner not in hidden
    ]
    for owner, name, child in places:
        delattr(owner, name)
        vars(owner)[name] = child  # an attribute, but no submodule
    try:
        yield
    finally:
        for owner, name, child in places:
            del vars(owner)[name]
            setattr(owner, name, child.to(accelerator.device, _PRECISION.get(accelerator.mixed_precision)))


def shared_out(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """A frozen model in the policy's precision whose weights are shared out; its output embedding stays whole.

    The embedding is used outside of the model's forward, by distillation.
    """
    import deepspeed

    _refuse_parts(model)
    base = pretrained(model)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    kept = [head] if head.weight is not embedding.weight else [head, embedding]  # type: ignore[union-attr, list-item]
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        # What is to be filled in depends on a size of the policy, or on its optimiser.
        "zero_optimization": {
            key: value
            for key, value in _settings(accelerator).items()
            if value != "auto" and key != "offload_optimizer"
        },
        **{name: {"enabled": accelerator.mixed_precision == name} for name in _PRECISION},
    }
    with left_whole(accelerator, model, *kept):  # type: ignore[arg-type]
        engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.eval()  # which returns nothing
    return engine  # type: ignore[no-any-return]


# --- weights --------------------------------------------------------------------------------------------------------


def whole_weight(value: Tensor) -> Tensor:
    """The value of a parameter, gathered; another tensor as it is."""
    if not is_part(value):
        return value
    with written([value], write=False):
        return value.detach().clone()


@contextmanager
def written(values: Sequence[Tensor], *, write: bool = True) -> Iterator[None]:
    """Gather parameters for as long as they are read, or written on every process alike."""
    with ExitStack() as stack:
        if any(map(is_part, values)):
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(list(values), modifier_rank=0 if write else None))
        yield


# --- gradients ------------------------------------------------------------------------------------------------------


def add_term_gradients(
    engine: Any,
    loss: Tensor,
    *,
    beside: Tensor,
    parameters: Sequence[nn.Parameter],
    sums: Sequence[Tensor | None],
    first: bool,
) -> list[Tensor | None]:
    """As `ral.models.sharding.add_term_gradients`, by the only backward pass of its graph: flat shards of the mean over processes.

    Args:
        beside: the other term, which gets a gradient of 0. The hooks that gather weights follow it from the model's output on, where
            the attention term alone would enter in the middle of a layer.
        first: whether nothing of this step has been trained on yet, so that the parameters hold what an earlier step has left.
    """
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    held = [torch.zeros_like(own) if first else own.clone() for own in map(safe_get_local_grad, parameters)]
    for parameter, own in zip(parameters, held, strict=True):
        safe_set_local_grad(parameter, torch.zeros_like(own))
    engine.set_gradient_accumulation_boundary(False)
    engine.backward(loss + 0 * beside, scale_wrt_gas=False)
    mesh = _everyone(loss.device.type)
    found: list[Tensor | None] = []
    for parameter, own, total in zip(parameters, held, sums or [None] * len(parameters), strict=True):
        gradient = DTensor.from_local(safe_get_local_grad(parameter).clone(), mesh, [Shard(0)])
        found.append(gradient if total is None else total.add_(gradient))
        safe_set_local_grad(parameter, own)
    return found


def add_gradient(parameter: nn.Parameter, gradient: Tensor, weight: float) -> None:
    """As `ral.models.sharding.add_gradient`."""
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    assert isinstance(gradient, DTensor)
    safe_set_local_grad(parameter, safe_get_local_grad(parameter) + weight * gradient.to_local())


@cache
def _everyone(device: str) -> DeviceMesh:
    return init_device_mesh(device, (torch.distributed.get_world_size(),))
