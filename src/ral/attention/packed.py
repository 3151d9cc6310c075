"""The registered attention: SDPA over a packed row, handing on the query and key of the layers asked for.

Registered under the name `ral_packed`. Called without a layout (generation, supervised training, evaluation by others)
it *is* transformers' SDPA attention, mask included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ral.attention.layout import PackedLayout

NAME = "ral_packed"


@dataclass(frozen=True)
class DecodingBias:
    """The look bias of a rollout, one row per sequence: `values [N, P]` on the first P keys, in `layers` (None: all)."""

    values: Tensor
    layers: tuple[int, ...] | None

    def reaches(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def added_to(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """The bool mask `[N, 1, 1, S]` as an additive one with the bias in it."""
        values = self.values.to(mask.device, dtype)
        additive = nn.functional.pad(values, (0, mask.shape[-1] - values.shape[1]))[:, None, None]
        return additive.masked_fill(~mask, float("-inf"))

    def of(self, rows: Tensor) -> DecodingBias:
        return DecodingBias(self.values[rows], self.layers)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    look_bias: DecodingBias | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one decoder layer in transformers' `AttentionInterface` convention.

    Args:
        query: `[B, H, T, D]` after RoPE; key, value: `[B, H_kv, T, D]`. With a layout B is 1 and the mask is ignored.
        look_bias: what a rollout's decoding steps are biased by.

    Returns:
        Output `[B, T, H, D]`, and None for the weights, which are never formed.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    if packed is None:
        if look_bias is not None and look_bias.reaches(layer) and attention_mask is not None:
            attention_mask = look_bias.added_to(attention_mask, query.dtype)
        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)

    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    if layer in packed.capture_layers:
        packed.captured[layer] = (query[0], key[0], scaling)

    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    # `split` rather than slices: its backward is one concatenation instead of a zero-filled row per piece.
    pieces = zip(*(x.split(packed.split_sizes, dim=2) for x in (query, key, value)), strict=True)
    attend: Any = {"dropout_p": dropout, "scale": scaling}
    outputs = []
    for masks in packed.block_masks(layer, query.device, query.dtype):
        q, k_prompt, v_prompt = next(pieces)
        outputs.append(scaled_dot_product_attention(q, k_prompt, v_prompt, is_causal=True, **attend))
        for mask in masks:
            q, k_own, v_own = next(pieces)
            k, v = torch.cat([k_prompt, k_own], dim=2), torch.cat([v_prompt, v_own], dim=2)
            outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, **attend))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
# A name that is missing here would get no mask at all in an ordinary forward pass.
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
