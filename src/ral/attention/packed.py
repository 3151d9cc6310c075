"""The registered attention function for packed rows. It captures query and key of the chosen layers.

Registered under the name `ral_packed`. Called with `Prefixes` it is a rollout's decoding step; called with neither
(prefilling, supervised training, evaluation by others) it *is* transformers' SDPA attention, mask included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ral.attention.carried import Carried
from ral.attention.flex import FlexRow
from ral.attention.layout import PackedLayout
from ral.attention.prefix import Prefixes, Record
from ral.attention.repeated import CachedRows, RepeatedPass, ordinary
from ral.attention.sight import EVERYTHING, Sight, sight_of

NAME = "ral_packed"

Kernel = Literal["sdpa", "flex"]
#: (layer, query, key, value, *, sight, scale, dropout_p) → `[1, H, T, D]`: what computes the attention of one packed row.
Attend = Callable[..., Tensor]
Captured = tuple[Tensor, Tensor, float, Sight]


@dataclass(frozen=True, eq=False)
class PackedPass:
    """One forward pass of a packed row: inputs of its attention layers, and the values they capture.

    Attributes:
        layout: of the row. attend: computes the row's attention, see `KERNELS`.
        capture_layers: decoder layers (non-negative) whose post-RoPE query and key are wanted.
        captured: layer → (query `[H, T, D]`, key `[H_kv, T, D]`, scaling, sight); the layers fill it.
    """

    layout: PackedLayout
    attend: Attend
    capture_layers: tuple[int, ...] = ()
    captured: dict[int, Captured] = field(default_factory=dict)


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
    packed: Carried[PackedPass] | Carried[RepeatedPass] | None = None,
    prefix: Carried[Prefixes] | Carried[CachedRows] | None = None,
    record: Carried[Record] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one decoder layer in transformers' `AttentionInterface` convention.

    Args:
        query: `[B, H, T, D]` after RoPE; key, value: `[B, H_kv, T, D]`. With a layout B is 1.
        packed, prefix: a group's pass, or a rollout's prompts; with a shared prompt the mask is ignored.
        record: takes up the keys and values of a rollout's prompts.

    Returns:
        Output `[B, T, H, D]`, and None for the weights, which are never formed.
    """
    if record is not None:  # Under autocast keys are float32, as the rotation makes them.
        record.value.layers[module.layer_idx] = (key.to(value.dtype), value)  # type: ignore[index]
    unshared = next(
        (c.value for c in (packed, prefix) if c is not None and isinstance(c.value, RepeatedPass | CachedRows)), None
    )
    if unshared is not None or (packed is None and prefix is None):
        attend = ordinary if unshared is None else unshared.attend
        return attend(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs), None

    layer: int = module.layer_idx  # type: ignore[assignment]
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    if packed is None:
        assert prefix is not None
        return cast(Prefixes, prefix.value).attend(layer, query, key, value, scaling, sight_of(module)), None
    row, sight = cast(PackedPass, packed.value), sight_of(module)
    if layer in row.capture_layers:
        row.captured[layer] = (query[0], key[0], scaling, sight)
    output = row.attend(layer, query, key, value, sight=sight, scale=scaling, dropout_p=dropout)
    return output.transpose(1, 2).contiguous(), None


def attend_in_blocks(
    layout: PackedLayout,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sight: Sight = EVERYTHING,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """SDPA `[1, H, T, D]` of each prompt, and of each block of completions on [prompt; block]."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    # `split` rather than slices: its backward is one concatenation instead of a zero-filled row per piece.
    pieces = zip(*(x.split(layout.split_sizes, dim=2) for x in (query, key, value)), strict=True)
    attend: Any = {"dropout_p": dropout_p, "scale": scale}
    outputs = []
    prompts, blocks = (
        layout.prompt_masks(sight, query.device),
        layout.block_masks(layer, query.device, query.dtype, sight),
    )
    for prompt, masks in zip(prompts, blocks, strict=True):
        q, k_prompt, v_prompt = next(pieces)
        seen: Any = {"is_causal": True} if prompt is None else {"attn_mask": prompt}
        outputs.append(scaled_dot_product_attention(q, k_prompt, v_prompt, **seen, **attend))
        for mask in masks:
            q, k_own, v_own = next(pieces)
            k, v = torch.cat([k_prompt, k_own], dim=2), torch.cat([v_prompt, v_own], dim=2)
            outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, **attend))
    return torch.cat(outputs, dim=2)


#: Makes what computes the attention of a packed row, for all of its layers: SDPA block by block, or FlexAttention in one call.
KERNELS: dict[Kernel, Callable[[PackedLayout, torch.device], Attend]] = {
    "sdpa": lambda layout, device: partial(attend_in_blocks, layout),
    "flex": lambda layout, device: FlexRow.of(layout, device).attend,
}

AttentionInterface.register(NAME, packed_attention)
# A name that is missing here would get no mask at all in an ordinary forward pass.
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
