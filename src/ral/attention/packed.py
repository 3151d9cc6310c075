"""The registered attention: that of a packed row, handing on the query and key of the layers asked for.

Registered under the name `ral_packed`. Called with a `SharedPrefix` it is a rollout's decoding step; called with neither
(prefilling, supervised training, evaluation by others) it *is* transformers' SDPA attention, mask included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ral.attention import flex
from ral.attention.layout import Kernel, PackedLayout
from ral.attention.prefix import SharedPrefix

NAME = "ral_packed"


# Left out of compiled models (`torch_compile`): it counts lengths in Python, and each would be compiled anew. What
# surrounds it is compiled for all lengths.
@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one decoder layer in transformers' `AttentionInterface` convention.

    Args:
        query: `[B, H, T, D]` after RoPE; key, value: `[B, H_kv, T, D]`. With a layout B is 1.
        packed, prefix: with either of them the mask is ignored.

    Returns:
        Output `[B, T, H, D]`, and None for the weights, which are never formed.
    """
    if packed is None and prefix is None:
        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)

    layer: int = module.layer_idx  # type: ignore[assignment]
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    if packed is None:
        assert prefix is not None
        return prefix.attend(layer, query, key, value, scaling), None
    if layer in packed.capture_layers:
        packed.captured[layer] = (query[0], key[0], scaling)

    attend = KERNELS[packed.kernel]
    output = attend(packed, layer, query, key, value, scale=scaling, dropout_p=dropout)
    return output.transpose(1, 2).contiguous(), None


def attend_in_blocks(
    layout: PackedLayout, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout_p: float
) -> Tensor:
    """SDPA `[1, H, T, D]` of each prompt, and of each block of completions on [prompt; block]."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    # `split` rather than slices: its backward is one concatenation instead of a zero-filled row per piece.
    pieces = zip(*(x.split(layout.split_sizes, dim=2) for x in (query, key, value)), strict=True)
    attend: Any = {"dropout_p": dropout_p, "scale": scale}
    outputs = []
    for masks in layout.block_masks(layer, query.device, query.dtype):
        q, k_prompt, v_prompt = next(pieces)
        outputs.append(scaled_dot_product_attention(q, k_prompt, v_prompt, is_causal=True, **attend))
        for mask in masks:
            q, k_own, v_own = next(pieces)
            k, v = torch.cat([k_prompt, k_own], dim=2), torch.cat([v_prompt, v_own], dim=2)
            outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, **attend))
    return torch.cat(outputs, dim=2)


#: What computes the attention of a packed row; all of them take and return the same.
KERNELS: dict[Kernel, Callable[..., Tensor]] = {"sdpa": attend_in_blocks, "flex": flex.attend}

AttentionInterface.register(NAME, packed_attention)
# A name that is missing here would get no mask at all in an ordinary forward pass.
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
