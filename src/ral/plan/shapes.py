"""The sizes of a model from its configuration, built on the meta device: no weight is read or allocated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, Qwen2_5_VLConfig

from ral.attention.models import decoder_layers, family, has_vision, make_capturable, vision_tower
from ral.models.loading import freeze_vision, load_config

Method = Literal["full", "adapter", "adapter on 4 bits"]

#: What the published config.json of Qwen2.5-VL say where the sizes differ; `parameters` are those of their weight files.
PUBLISHED: dict[str, dict[str, Any]] = json.loads((files("ral.plan") / "qwen2_5_vl.json").read_text(encoding="utf-8"))
#: What they have in common.
_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
#: Bytes of a weight in four bits, with one float32 scale for every 64 of them.
FOUR_BITS = 0.5 + 4 / 64


@dataclass(frozen=True)
class Stack:
    """Equal transformer blocks with gated feed-forward layers; `normed_heads`: query and key are normalised per head."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    normed_heads: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> int:
        """Weights of one block's seven matrices: what a token is multiplied with."""
        return self.hidden * (2 * self.query_width + 2 * self.key_width + 3 * self.intermediate)


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes.

    Attributes:
        origin: where they are from, in words.
        parameters: all of them, tied ones once; `vision_parameters` of tower and projector.
        linear_parameters: of the linear layers that four bits replace: all but the output embedding.
        saved_bytes: of one weight in the checkpoint.
        visual_pixels: pixels of a frame behind one visual token, visual_frames: frames of a video behind it,
            visual_values: numbers that the processor makes of them; 0 in a text model.
    """

    origin: str
    decoder: Stack
    vocabulary: int
    parameters: int
    vision_parameters: int
    linear_parameters: int
    saved_bytes: int
    visual_pixels: int = 0
    visual_frames: int = 0
    visual_values: int = 0

    @property
    def reads_images(self) -> bool:
        return self.visual_pixels > 0


@dataclass(frozen=True)
class Weights:
    """The trained part of a model and its storage.

    Attributes:
        stored: bytes of all weights as they are loaded, the adapter's included.
        trained: parameters with a gradient.
        weight_bytes: of one base weight that is computed with.
        inputs, ranks: of the adapted matrices of one block, the sums of their input widths and of their ranks.
    """

    method: Method
    stored: float
    trained: int
    weight_bytes: int
    inputs: float = 0.0
    ranks: float = 0.0


@cache
def meta_model(name: str) -> tuple[PreTrainedModel, str]:
    """The model of a folder, a hub id or a published size, without weights, and where its shape is from.

    A name with a published size in it (`runs/qwen2.5-vl-7b-sft`) that is no folder here has that size's shape; the hub is
    not asked. Raises what AutoConfig and `make_capturable` raise for other names and other models.
    """
    size = re.search(r"qwen2\.5-vl-(\d+b)\b", name.lower())
    if size and size[1].upper() in PUBLISHED and not Path(name).is_dir():
        config, origin = published_config(size[1].upper()), f"the published shape of Qwen2.5-VL-{size[1].upper()}"
    else:
        config, origin = load_config(name), name
    loader: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(config)
    model.tie_weights()
    return make_capturable(model), origin


def published_config(size: str) -> Qwen2_5_VLConfig:
    """The configuration of Qwen2.5-VL in a published size (`PUBLISHED`)."""
    text = {key: value for key, value in PUBLISHED[size].items() if key != "parameters"}
    intermediate = text.pop("vision_intermediate_size")
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    return Qwen2_5_VLConfig(
        text_config={**text, "max_position_embeddings": 128_000, "rope_parameters": rope, "use_sliding_window": False},
        vision_config={**_VISION, "intermediate_size": intermediate, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=text["tie_word_embeddings"],
        dtype="bfloat16",
    )


def shape_of(model: PreTrainedModel, origin: str = "") -> ModelShape:
    """The sizes of a model, on whatever device."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    decoder = Stack(
        layers=len(decoder_layers(model)),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        normed_heads=hasattr(decoder_layers(model)[0].self_attn, "q_norm"),
    )
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    saved: Any = model.config.dtype or text.dtype or torch.float32
    vision: dict[str, int] = {}
    if has_vision(model):
        token = family(model).visual_token(model.config)
        vision = {"visual_pixels": token.pixels, "visual_frames": token.frames, "visual_values": token.values}
    return ModelShape(
        origin=origin,
        decoder=decoder,
        vocabulary=text.vocab_size,
        parameters=_count(model.parameters()),
        vision_parameters=_count(vision_tower(model).parameters()),
        linear_parameters=sum(module.weight.numel() for module in linear),
        saved_bytes=saved.itemsize,
        **vision,
    )


def weights_of(
    model: PreTrainedModel, adapter: LoraConfig | None, four_bits: bool, frozen_vision: bool = True
) -> Weights:
    """The trained part of a model on the meta device: an `adapter`, or (None) all weights."""
    shape = shape_of(model)
    if adapter is None:
        trained = shape.parameters - (shape.vision_parameters if frozen_vision else 0)
        return Weights("full", 4.0 * shape.parameters, trained, 4)
    if frozen_vision:
        freeze_vision(model)
    adapted = get_peft_model(model, adapter, low_cpu_mem_usage=True)
    try:
        trained = _count(p for p in adapted.parameters() if p.requires_grad)
        layers = decoder_layers(model)
        inner = [p for name, p in layers.named_parameters() if "lora_A" in name]
        inputs, ranks = (sum(p.shape[axis] for p in inner) / len(layers) for axis in (1, 0))
    finally:
        adapted.unload()  # type: ignore[operator]
        model.requires_grad_(True)
    quantised = shape.linear_parameters if four_bits else 0
    base = quantised * FOUR_BITS + (shape.parameters - quantised) * shape.saved_bytes
    method: Method = "adapter on 4 bits" if four_bits else "adapter"
    return Weights(method, base + 4.0 * trained, trained, shape.saved_bytes, inputs, ranks)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
