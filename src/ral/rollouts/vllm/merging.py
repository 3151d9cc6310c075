"""Merges LoRA adapters into the base weights that are sent to a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import fsdp2_canonicalize_names
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from ral.errors import ConfigError
from ral.models.sharding import held_state
from ral.models.zero3 import whole_weight, written


def refuse_unmergeable(model: PeftModel) -> None:
    """Raise ConfigError for an adapter whose merged weights are more than its base's plus a product of two matrices."""
    refuse_unservable(model)
    if any(not weight.is_floating_point() for weight in model.parameters()):
        raise ConfigError(
            "an adapter on quantised weights cannot be merged into them for the server; set vllm_transfer='adapter', which "
            "sends the adapter alone, or rollout_engine=transformers"
        )


def refuse_unservable(model: PeftModel) -> None:
    """Raise ConfigError for an adapter that a server does not know: all but plain LoRA."""
    config: Any = model.active_peft_config
    for refused, what in (
        (not isinstance(config, LoraConfig), f"an adapter of the kind {config.peft_type}"),
        (any(getattr(module, "lora_variant", None) for module in model.modules()), "a variant of LoRA such as DoRA"),
        (getattr(config, "bias", "none") != "none", "trained biases (bias)"),
        (getattr(config, "lora_bias", False), "biases of the adapter (lora_bias)"),
        (bool(getattr(config, "modules_to_save", None)), "modules_to_save"),
        (bool(getattr(config, "trainable_token_indices", None)), "trained tokens (trainable_token_indices)"),
    ):
        if refused:
            raise ConfigError(
                f"rollout_engine='vllm' sends plain LoRA, and cannot send {what}; leave that out, or set "
                "rollout_engine=transformers"
            )


@torch.no_grad()
def merged_weights(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """The base model's weights with the active LoRA adapters added, by the base model's own names; the model stays as it is.

    One weight after the other, so that only one merged layer is held beside the model. Sharded weights stay sharded.
    """
    base = model.get_base_model()
    # As they are saved: FSDP2's checkpointing wraps layers, which shows in names of modules alone.
    named = fsdp2_canonicalize_names(dict(base.named_modules()))
    layers: dict[str, Any] = {name: module for name, module in named.items() if isinstance(module, LoraLayer)}
    for name, value in held_state(base).items():
        owner, _, parameter = name.rpartition(".base_layer.")
        if any(f".{part}" in name for part in LoraLayer.adapter_layer_names):
            continue
        if owner in layers and parameter == "weight":
            value = whole_weight(value)
            with written(_adapter_weights(layers[owner]), write=False):
                for adapter in layers[owner].active_adapters:
                    value = value + layers[owner].get_delta_weight(adapter).to(value.dtype)
        yield name.replace(".base_layer.", "."), value


def _adapter_weights(layer: Any) -> list[Tensor]:
    return [value for name, value in layer.named_parameters() if name.startswith(LoraLayer.adapter_layer_names)]
