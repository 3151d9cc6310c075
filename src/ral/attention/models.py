"""Reads what the packed forward needs to know about a model, from public attributes only."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel

from ral.attention import fork, packed
from ral.errors import ConfigError
from ral.families import Family, family_of
from ral.families.family import MODALITIES, joined


class UnsupportedModelError(ConfigError):
    """The model's attention cannot be captured."""


def pretrained(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, FSDP, DeepSpeed, `torch.compile` or PEFT wrappers."""
    if isinstance(model, PreTrainedModel):  # nearly every call; the search for wrappers goes through all modules
        return model
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator, return-value]


def family(model: PreTrainedModel) -> Family:
    return family_of(model.config)


def has_vision(model: PreTrainedModel) -> bool:
    return bool(family(model).placeholders(model.config))


def vision_tower(model: Any) -> nn.Module:
    """The vision tower with its projector; a module without weights for a text model."""
    return family(model).tower(model)


def trains_vision(model: Any) -> bool:
    """Whether any weight of the vision tower, or an adapter's in it, is trained."""
    return any(parameter.requires_grad for parameter in vision_tower(model).parameters())


def patch_values(model: PreTrainedModel) -> int | None:
    """Numbers in one patch of an image or video, as the vision tower takes it; None where it takes whole images."""
    return family(model).patch_values(model.config)


def make_capturable(model: nn.Module) -> PreTrainedModel:
    """Switch the text decoder to the packed attention; idempotent. Called with no layout it goes on as plain SDPA.

    Raises:
        UnsupportedModelError: an architecture whose attention cannot be exchanged.
    """
    base = pretrained(model)
    if base.config.get_text_config()._attn_implementation == packed.NAME:
        return base
    if not attention_layers(base):
        raise UnsupportedModelError(
            f"{type(base).__name__} is not supported: none of its decoder layers takes its attention from transformers' "
            "AttentionInterface, so that it cannot be captured. Choose a model whose attention does."
        )
    fork.install(base)
    base.set_attn_implementation({"text_config": packed.NAME} if has_vision(base) else packed.NAME)
    return base


#: Models that turned out not to share prompts as they should (`ral.attention.selfcheck`).
_REPEATED: WeakSet[nn.Module] = WeakSet()


def repeat_prompts(model: nn.Module) -> None:
    """Run every completion of this model after its own copy of the prompt from now on."""
    _REPEATED.add(pretrained(model))


def why_repeated(model: nn.Module) -> str | None:
    """Why a model's completions cannot share their prompt; None where they do."""
    base = pretrained(model)
    return "its packed row differs" if base in _REPEATED else family(base).unshareable(base.config)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of its decoder layers. Raises UnsupportedModelError where there is none of the length that its configuration says."""
    decoder: Any = model.get_decoder()
    count = model.config.get_text_config().num_hidden_layers
    inner = getattr(decoder, "language_model", decoder)
    found = getattr(inner, "layers", None)
    lists = (module for module in inner.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    if (layers := found if found is not None else next(lists, None)) is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported: it has no list of {count} decoder layers."
        )
    return layers  # type: ignore[no-any-return]


@cache
def _has_attention(kind: Any) -> bool:
    """Whether layers of a class take their attention from the registered functions."""
    return "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(kind.forward).__code__.co_names


def attention_layers(model: PreTrainedModel) -> list[int]:
    """The decoder layers that have attention; the others of a hybrid carry a state."""
    layers = decoder_layers(model)
    return [i for i, layer in enumerate(layers) if any(map(_has_attention, map(type, layer.modules())))]


def resolve_layers(model: PreTrainedModel, layers: Sequence[int]) -> tuple[int, ...]:
    """Numbers of decoder layers: -1 is the last that has attention, -2 the one with attention before it.

    Raises:
        ConfigError: a layer that the model does not have, that has no attention, or that is named twice.
    """
    count, found = len(decoder_layers(model)), attention_layers(model)
    for layer in layers:
        if not -len(found) <= layer < count:
            few = "" if len(found) == count else f", {len(found)} of them with attention"
            raise ConfigError(f"attention_layers contains {layer}, but the model has {count} decoder layers{few}")
        if layer >= 0 and layer not in found:
            raise ConfigError(
                f"attention_layers contains {layer}, a layer without attention; those with it are {found}"
            )
    resolved = tuple(layer if layer >= 0 else found[layer] for layer in layers)
    if len(set(resolved)) < len(resolved):
        raise ConfigError(f"attention_layers {list(layers)} names a layer twice: the model has {count} decoder layers")
    return resolved


@contextmanager
def capture_with_gradient(model: PreTrainedModel, layers: tuple[int, ...]) -> Iterator[None]:
    """Exempt the captured layers from gradient checkpointing.

    A reentrant checkpoint runs its first forward without grad, so what is captured in it would carry no gradient.
    """
    modules: list[Any] = [decoder_layers(model)[i] for i in layers]
    before = [getattr(module, "gradient_checkpointing", False) for module in modules]
    for module in modules:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module, flag in zip(modules, before, strict=True):
            module.gradient_checkpointing = flag


def visual_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The placeholder tokens that stand for visual features in a prompt."""
    return tuple(family(model).placeholders(model.config).values())


def special_visual_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Every token with a visual meaning. None may be sampled: the next forward would expect features for it."""
    return tuple(sorted(family(model).banned(model.config)))


def is_part(value: Tensor) -> bool:
    """Whether DeepSpeed ZeRO-3 has shared this parameter out: it marks what it has."""
    return hasattr(value, "ds_id")


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are whole inside of its forward alone: under FSDP2 and ZeRO-3."""
    embedding: Any = pretrained(model).get_input_embeddings()
    return isinstance(model, FSDPModule) or is_part(embedding.weight)


def vision_features(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Features of the vision tower for a processor's dict: modality → model output, as `mm_encoder_outputs` takes it."""
    base = pretrained(model)
    return family(base).features(_encoder(model), base, inputs)


def token_inputs(
    model: nn.Module, ids: Tensor, places: Sequence[Tensor], features: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The tokens `ids [B, T]` and the prompts' visual features, as the model's `forward` takes them.

    Args:
        places: per prompt `[N]`, where its visual tokens stand in the flattened ids. features: per prompt the tower's output.
    """
    base = pretrained(model)
    if not has_vision(base):
        return {"input_ids": ids}
    encoded = joined(features)
    if encoded and not is_sharded(model):
        # Of each prompt images before videos, as places are; what `joined` makes is all images before all videos.
        flat = [
            one
            for found in features
            for modality in MODALITIES
            if modality in found
            for one in _pooled(found[modality])
        ]
        merged = family(base).merged(base, ids, torch.cat(list(places)), flat)
        if merged is not None:
            return {"inputs_embeds": merged}
    return {"input_ids": ids, "mm_encoder_outputs": encoded}


def _pooled(output: Any) -> Sequence[Tensor]:
    pooled = output.pooler_output
    return [pooled] if isinstance(pooled, Tensor) else pooled or ()


def _encoder(model: nn.Module) -> Any:
    """The module with `get_image_features` and `get_video_features`. FSDP2 gathers weights for `forward` unless told otherwise.

    In a pass with gradient it is the part inside the sharded model, of which the tower alone gathers. Otherwise the processes that
    have an image would gather the rest once more in the backward pass, and wait for those that have none.
    """
    if not isinstance(model, FSDPModule):
        return pretrained(model)
    if torch.is_grad_enabled():
        return pretrained(model).base_model
    for name in ("get_image_features", "get_video_features"):
        if hasattr(model, name) and name not in vars(model):
            register_fsdp_forward_method(model, name)
    return model


def rope_positions(model: PreTrainedModel, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Positions of an unpadded prompt, as the checkpoint was trained with: `[3, P]` (M-RoPE) or `[P]`."""
    return family(model).positions(model, input_ids, inputs)
