"""The sizes of a model from its configuration, built on the meta device: no weight is read or allocated."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from ral.attention.fork import has_state
from ral.attention.held import Held, held_by_layers
from ral.attention.models import decoder_layers, family, has_vision, make_capturable, vision_tower
from ral.attention.sight import EVERYTHING, Sight, sight_of
from ral.models.loading import freeze_vision, load_config
from ral.plan.saved import Saved, saved_by_layers

Method = Literal["full", "adapter", "adapter on 4 bits"]

#: What the published config.json of these models say where it differs from transformers' defaults. `parameters` are those of
#: their weight files, `not_loaded` those among them that transformers leaves out (layers for multi-token prediction).
PUBLISHED: dict[str, dict[str, Any]] = json.loads((files("ral.plan") / "published.json").read_text(encoding="utf-8"))
#: Bytes of a weight in four bits, with one float32 scale for every 64 of them.
FOUR_BITS = 0.5 + 4 / 64


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        parameters: all its weights. largest: of the largest tensor among them.
        matrices: weights that every token is multiplied with. experts: weights of experts, of which a token takes `share`.
        gate: width of the gated units that a token goes through.
        heads: queries of a token; 0: no attention. grouped: queries for each key. sight: the tokens that are attended to.
        held: what rollouts hold.
        saved: what the backward pass needs beside attention.
    """

    parameters: int
    largest: int
    matrices: int
    experts: int
    share: float
    gate: int
    heads: int
    grouped: int
    sight: Sight
    held: Held
    saved: Saved

    @property
    def active(self) -> float:
        """Weights that one token is multiplied with."""
        return self.matrices + self.share * self.experts

    @property
    def queries(self) -> int:
        """Numbers of a token's queries, and of its keys once there is one for each query."""
        return self.held.keys * self.grouped

    @property
    def outputs(self) -> int:
        """Numbers of a token's values once there is one for each query, and of what attention makes of them."""
        return self.held.values * self.grouped

    def read(self, tokens: float) -> float:
        """Weights that a pass over so many tokens takes, when experts are chosen evenly."""
        return self.matrices + self.experts * (1 - (1 - self.share) ** tokens)


@dataclass(frozen=True)
class Decoder:
    """The decoder: its layers, and the width of what goes through them."""

    hidden: int
    layers: tuple[Layer, ...]

    @cached_property
    def kinds(self) -> dict[Layer, int]:
        """Its different layers, and how many there are of each."""
        return Counter(self.layers)

    @property
    def attending(self) -> list[Layer]:
        """The layers with attention, in order."""
        return [layer for layer in self.layers if layer.heads]

    @cached_property
    def parameters(self) -> int:
        return sum(count * layer.parameters for layer, count in self.kinds.items())

    @cached_property
    def active(self) -> float:
        return sum(count * layer.active for layer, count in self.kinds.items())

    @cached_property
    def token(self) -> int:
        """Numbers that all layers hold of a token."""
        return sum(count * layer.held.token for layer, count in self.kinds.items())

    @cached_property
    def state(self) -> int:
        """Numbers that all layers hold of a sequence."""
        return sum(count * layer.held.state for layer, count in self.kinds.items())

    def read(self, tokens: float) -> float:
        return sum(count * layer.read(tokens) for layer, count in self.kinds.items())


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes.

    Attributes:
        origin: where they are from, in words.
        parameters: all of them, tied ones once; `vision_parameters` of tower and projector.
        saved_bytes: of one weight in the checkpoint.
        input_embedding: parameters of it where the output embedding has weights of its own.
        heads: of the decoder's queries. shared: whether the completions of a prompt share it.
        visual_patches: patches of the tower behind one visual token, visual_values: numbers that the processor makes of it;
            0 in a text model. feature_levels: outputs of the tower for one visual token, each of the decoder's width.
    """

    origin: str
    decoder: Decoder
    vocabulary: int
    parameters: int
    vision_parameters: int
    saved_bytes: int
    input_embedding: int
    heads: int
    shared: bool = True
    visual_patches: int = 0
    visual_values: int = 0
    feature_levels: int = 1

    @property
    def reads_images(self) -> bool:
        return self.visual_values > 0

    @property
    def active(self) -> float:
        """Parameters that take part in one token, the output embedding among them; the tower's are not."""
        return self.decoder.active + self.vocabulary * self.decoder.hidden

    @property
    def outside(self) -> int:
        """Parameters outside of decoder layers and vision tower: embeddings and the last norm."""
        return self.parameters - self.decoder.parameters - self.vision_parameters


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
    known = None if Path(name).is_dir() else published_name(name)
    config, origin = (
        (load_config(name), name) if known is None else (published_config(known), f"the published shape of {known}")
    )
    loader: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(config)
    model.tie_weights()
    return make_capturable(model), origin


@cache
def meta_shape(name: str) -> ModelShape:
    """The sizes of the model that `meta_model` gives."""
    return shape_of(*meta_model(name))


def published_name(name: str) -> str | None:
    """The published size (`PUBLISHED`) that a folder or hub id names."""
    found = (known for known in PUBLISHED if re.search(rf"(?<![\w.]){re.escape(known)}(?![\w.])", name, re.IGNORECASE))
    return next(found, None)


def published_config(name: str) -> Any:
    """The configuration of a published size (`PUBLISHED`)."""
    return AutoConfig.for_model(**PUBLISHED[name]["config"], dtype="bfloat16")


def shape_of(model: PreTrainedModel, origin: str = "") -> ModelShape:
    """The sizes of a model, on whatever device."""
    text, kind = model.config.get_text_config(), family(model)
    vision: dict[str, int] = {}
    embedding: Any = model.get_input_embeddings().weight
    if has_vision(model):
        token = kind.visual_token(model.config)
        deeper = getattr(model.config.vision_config, "deepstack_visual_indexes", None) or ()
        vision = {
            "visual_patches": token.patches,  # one covers several frames of a video
            "visual_values": token.values,
            "feature_levels": 1 + len(deeper),
        }
    return ModelShape(
        origin=origin,
        decoder=Decoder(text.hidden_size, _layers(model)),
        vocabulary=text.vocab_size,
        parameters=_count(model.parameters()),
        vision_parameters=_count(vision_tower(model).parameters()),
        saved_bytes=_saved_bytes(model),
        input_embedding=0 if embedding is model.get_output_embeddings().weight else embedding.numel(),
        heads=text.num_attention_heads,
        shared=kind.unshareable(model.config) is None,
        **vision,
    )


def _layers(model: PreTrainedModel) -> tuple[Layer, ...]:
    text = model.config.get_text_config()
    found = zip(decoder_layers(model), held_by_layers(model), saved_by_layers(model), strict=True)
    return tuple(_layer(module, text, held, saved) for module, held, saved in found)


def _layer(module: nn.Module, text: Any, held: Held, saved: Saved) -> Layer:
    """The sizes of one layer. Weights with three axes are those of experts; a convolution's are no matrix either."""
    parts: list[Any] = list(module.modules())
    own = [p for part in parts if not isinstance(part, nn.Conv1d) for p in part.parameters(recurse=False)]
    experts = [p for p in own if p.ndim == 3]
    chosen = next((part.top_k for part in parts if isinstance(getattr(part, "top_k", None), int)), None)
    used = chosen or getattr(text, "num_experts_per_tok", None) or 1
    count = experts[0].shape[0] if experts else used
    # Of an expert's three matrices each has so many numbers for every number of the hidden width.
    routed = sum(p.numel() for p in experts) // (3 * text.hidden_size * count) * used
    attention = next((part for part in parts if hasattr(part, "num_key_value_groups")), None)
    return Layer(
        parameters=_count(module.parameters()),
        largest=max(p.numel() for p in module.parameters()),
        matrices=sum(p.numel() for p in own if p.ndim == 2),
        experts=sum(p.numel() for p in experts),
        share=used / count,
        gate=routed + _gate(module, text.hidden_size),
        heads=text.num_attention_heads if held.token else 0,
        grouped=1 if attention is None else attention.num_key_value_groups,
        sight=EVERYTHING if attention is None else sight_of(attention),
        held=held,
        saved=saved,
    )


def _gate(layer: nn.Module, hidden: int) -> int:
    """Width of the dense units of a layer: what a matrix outside of attention and state brings back to the hidden width."""
    width = 0
    for part in layer.children():
        if not any(hasattr(m, "num_key_value_groups") or has_state(m) for m in part.modules()):
            linear = (m for m in part.modules() if isinstance(m, nn.Linear) and m.out_features == hidden)
            width += sum(m.in_features for m in linear)
    return width


def weights_of(
    model: PreTrainedModel, adapter: LoraConfig | None, four_bits: bool, frozen_vision: bool = True
) -> Weights:
    """The trained part of a model on the meta device: an `adapter`, or (None) all weights."""
    parameters = _count(model.parameters())
    if adapter is None:
        trained = parameters - (_count(vision_tower(model).parameters()) if frozen_vision else 0)
        return Weights("full", 4.0 * parameters, trained, 4)
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
    # Four bits replace linear layers, all but the output embedding; experts in one tensor stay as they are.
    head, saved = model.get_output_embeddings(), _saved_bytes(model)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    quantised = sum(module.weight.numel() for module in linear) if four_bits else 0
    base = quantised * FOUR_BITS + (parameters - quantised) * saved
    method: Method = "adapter on 4 bits" if four_bits else "adapter"
    return Weights(method, base + 4.0 * trained, trained, saved, inputs, ranks)


def _saved_bytes(model: PreTrainedModel) -> int:
    """Bytes of one weight in the checkpoint."""
    saved: Any = model.config.dtype or model.config.get_text_config().dtype or torch.float32
    return saved.itemsize  # type: ignore[no-any-return]


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
