"""What the packed forward needs to know about a model, by public attributes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel

from ral.attention import packed
from ral.errors import ConfigError
from ral.families import Family, family_of, known_types


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
    """Switch the text decoder to the packed attention; idempotent. Without a layout it goes on as plain SDPA.

    Raises:
        UnsupportedModelError: another architecture, or sliding-window attention.
    """
    base = pretrained(model)
    if not family(base).types:
        raise UnsupportedModelError(
            f"{type(base).__name__} is not supported: its attention cannot be captured. "
            f"Supported model types: {', '.join(known_types())}."
        )
    text = base.config.get_text_config()
    if "sliding_attention" in (getattr(text, "layer_types", None) or []):
        raise UnsupportedModelError(
            f"{type(base).__name__} uses sliding-window attention, which the packed attention does not do. "
            "Set use_sliding_window=False in its configuration."
        )
    if text._attn_implementation != packed.NAME:
        base.set_attn_implementation({"text_config": packed.NAME} if has_vision(base) else packed.NAME)
    return base


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    decoder = model.get_decoder()
    return getattr(decoder, "language_model", decoder).layers  # type: ignore[union-attr, return-value]


def resolve_layers(model: PreTrainedModel, layers: Sequence[int]) -> tuple[int, ...]:
    """Layer numbers counted from the front, from numbers that may count from the back as `-1` does."""
    count = len(decoder_layers(model))
    for layer in layers:
        if not -count <= layer < count:
            raise ConfigError(f"attention_layers contains {layer}, but the model has {count} decoder layers")
    resolved = tuple(layer % count for layer in layers)
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


def vision_features(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Features of the vision tower for a processor's dict: modality → model output, as `mm_encoder_outputs` takes it."""
    base = pretrained(model)
    return family(base).features(_encoder(model), base, inputs)


def _encoder(model: nn.Module) -> Any:
    """What has `get_image_features` and `get_video_features`. FSDP2 gathers weights for `forward` unless told otherwise."""
    if not isinstance(model, FSDPModule):
        return pretrained(model)
    for name in ("get_image_features", "get_video_features"):
        if hasattr(model, name) and name not in vars(model):
            register_fsdp_forward_method(model, name)
    return model


def merge_features(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Features of several prompts as one, in order."""
    merged: dict[str, Any] = {}
    for modality in ("image", "video"):
        outputs = [f[modality] for f in features if modality in f]
        if not outputs:
            continue
        joined = type(outputs[0])(pooler_output=tuple(t for o in outputs for t in o.pooler_output))
        if getattr(outputs[0], "deepstack_features", None) is not None:  # Qwen3-VL: one list of tensors per level
            levels = zip(*(o.deepstack_features for o in outputs), strict=True)
            joined.deepstack_features = [tuple(t for level in parts for t in level) for parts in levels]
        merged[modality] = joined
    return merged


def rope_positions(model: PreTrainedModel, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Positions of an unpadded prompt, as the checkpoint was trained with: `[3, P]` (M-RoPE) or `[P]`."""
    return family(model).positions(model, input_ids, inputs)
