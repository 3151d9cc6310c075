"""What each decoder layer saves of a token for the backward pass, measured on the meta device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AttentionInterface, PreTrainedModel

from ral.attention.held import decoder_without_weights
from ral.attention.models import decoder_layers

#: Tokens of the measured pass: the chunk of recurrent layers.
TOKENS = 64
_VALUES_ALONE = "ral_values_alone"


@dataclass(frozen=True)
class Saved:
    """What one layer saves of one token, in a model of 16 bits.

    Attributes:
        half, fixed: bytes of tensors in 16 bits, and of those that are wider whatever the model's precision.
        inputs: numbers that matrices take, each tensor once. again: those that further matrices take of the same tensors.
    """

    half: float
    fixed: float
    inputs: int
    again: int

    def bytes(self, width: int) -> float:
        """Bytes in a model whose numbers take `width` bytes."""
        return self.half * width / 2 + self.fixed


def saved_by_layers(model: PreTrainedModel) -> tuple[Saved, ...]:
    """What every decoder layer of a model saves, but for what its attention does with query, key and value.

    A copy of the model without weights runs some tokens on the meta device, with an attention that hands on the values. So
    norms, gates, experts and recurrent layers of every kind are counted without knowing the architecture; recurrent layers
    as transformers' own code computes them, which saves more than fused kernels do.
    """
    with torch.device("meta"):
        twin = decoder_without_weights(model)
        twin.set_attn_implementation(_VALUES_ALONE)
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
    weights = {_storage(parameter) for parameter in twin.parameters()}
    layers = [_Layer() for _ in decoder_layers(twin)]
    seen: dict[StorageWeakRef, Tensor] = {}
    running: list[_Layer] = []

    def pack(tensor: Tensor) -> Tensor:
        if running and (storage := _storage(tensor)) not in weights and storage not in seen:
            seen[storage] = tensor  # which also keeps its storage from being another's
            running[-1].kept.append(tensor)
        return tensor

    for layer, module in zip(layers, decoder_layers(twin), strict=True):
        module.register_forward_pre_hook(lambda *_, layer=layer: running.append(layer))
        module.register_forward_hook(lambda *_: running.clear())
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_pre_hook(lambda _, inputs, layer=layer: layer.inputs.append(inputs[0]))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        twin(input_ids=ids, use_cache=True)
    return tuple(layer.saved() for layer in layers)


@dataclass
class _Layer:
    """Tensors of one layer's pass: those that it saved, and those that its matrices took."""

    kept: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def saved(self) -> Saved:
        half, fixed = (
            sum(t.untyped_storage().nbytes() for t in self.kept if (t.dtype == torch.bfloat16) is narrow) / TOKENS
            for narrow in (True, False)
        )
        once = {_storage(tensor): tensor.numel() for tensor in self.inputs}
        taken, inputs = sum(tensor.numel() for tensor in self.inputs), sum(once.values())
        return Saved(half, fixed, inputs // TOKENS, (taken - inputs) // TOKENS)


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _values(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Attention that saves nothing: every head's output is its value."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2), None


AttentionInterface.register(_VALUES_ALONE, _values)
