"""FlexAttention over a packed row: one call for all groups, without copies of prompt keys.

This is the second kernel for packed rows. SDPA needs one call per block of completions, on a copy of the prompt's keys and
values. FlexAttention uses a mask over the whole row and skips its empty tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad

from ral.attention.layout import PackedLayout
from ral.attention.sight import EVERYTHING, Sight
from ral.errors import ConfigError

#: (score, batch, head, query, key) → score.
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class KernelError(ConfigError):
    """An attention kernel that cannot train on a device; the message says what to change."""


@dataclass(frozen=True)
class FlexRow:
    """The mask and the biases of one packed row, shared by all layers.

    Attributes:
        layout: of the row. seen: which keys each query sees. bias: adds the look biases to the scores; None without any.
    """

    layout: PackedLayout
    seen: BlockMask
    bias: ScoreMod | None

    @classmethod
    def of(cls, layout: PackedLayout, device: torch.device) -> FlexRow:
        own, prompt = layout.sequences(device)
        return cls(layout, _seen(own, prompt), _bias(layout, own))

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        sight: Sight = EVERYTHING,
        scale: float,
        dropout_p: float,
    ) -> Tensor:
        """Attention `[1, H, T, D]` of the row: query `[1, H, T, D]`; key, value `[1, H_kv, T, D]`, never repeated.

        Raises:
            KernelError: dropout, which FlexAttention does not have; and a window that is shorter than a sequence, or prompt
                tokens that see each other, of which its mask knows nothing here.
            NotImplementedError: a gradient is wanted on CPU, where FlexAttention has none.
        """
        if dropout_p:
            raise KernelError(
                f"FlexAttention has no dropout, but the model asks for {dropout_p}; set attention_dropout to 0 in its "
                "configuration, or attention_kernel to sdpa"
            )
        groups = self.layout.groups
        if any(g.together is not None or not sight.reaches(g.prompt_length + max(g.lengths)) for g in groups):
            raise KernelError(
                "attention_kernel='flex' knows no sliding window, no chunks and no image tokens that see each other, which this "
                "model has; set attention_kernel to sdpa"
            )
        run = _on(query.device, flex_attention)
        bias = self.bias if self.layout.biased(layer) else None
        return run(query, key, value, score_mod=bias, block_mask=self.seen, scale=scale, enable_gqa=True)


def refuse_untrainable(device: torch.device) -> None:
    """Raise KernelError where FlexAttention has no backward pass (CPU), or nothing to be compiled by (CUDA)."""
    if device.type == "cpu":
        raise KernelError(
            "attention_kernel='flex' trains on GPUs only, as torch's FlexAttention has no backward pass on CPU; set "
            "attention_kernel to sdpa"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise KernelError(
            "attention_kernel='flex' is compiled by triton, which is not installed; install triton, or set "
            "attention_kernel to sdpa"
        )


def _seen(own: Tensor, prompt: Tensor) -> BlockMask:
    """A query sees itself and what stands before it in its own sequence or in its prompt."""

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((own[key] == own[query]) | (own[key] == prompt[query]))

    return _on(own.device, create_block_mask)(seen, None, None, len(own), len(own), device=own.device)


def _bias(layout: PackedLayout, own: Tensor) -> ScoreMod | None:
    """Adds an entry of a table with a row per sequence and a column per place in a prompt.

    The rows of prompts are zero, as is the last column, where all completion tokens find themselves as keys.
    """
    if layout.look_bias is None:
        return None
    groups = layout.groups
    looks = [
        torch.zeros(len(group.lengths), group.prompt_length) if bias is None else bias
        for group, bias in zip(groups, layout.look_bias, strict=True)
    ]
    last = max(group.prompt_length for group in groups)
    rows = [pad(look.to(own.device, torch.float32), (0, last + 1 - look.shape[1], 1, 0)) for look in looks]
    places = [pad(torch.arange(group.prompt_length), (0, group.completion_total), value=last) for group in groups]
    table, place = torch.cat(rows), torch.cat(places).to(own.device)

    def biased(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + table[own[query], place[key]]

    return biased


def _on(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """FlexAttention for a device: compiled on accelerators; on CPU uncompiled, which is exact but slow."""
    return function if device.type == "cpu" else _compiled(function)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # No two rows are of one length; with static shapes each would be compiled anew.
    return torch.compile(function, dynamic=True)
