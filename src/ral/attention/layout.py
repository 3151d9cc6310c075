"""Where everything stands in a packed row: `[prompt_1 | y_11 | … | y_1G | prompt_2 | y_21 | …]`.

A group is one prompt with its G completions. Prompt tokens attend causally inside the prompt, completion tokens to the
whole prompt and causally to their own completion; nothing crosses a group. There is no padding anywhere in the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupLayout:
    """One group inside the row: a prompt of `prompt_length` tokens and completions of the given lengths (each ≥ 1)."""

    prompt_length: int
    lengths: tuple[int, ...]

    @property
    def completion_total(self) -> int:
        return sum(self.lengths)

    @property
    def total(self) -> int:
        return self.prompt_length + self.completion_total

    def completion_mask(self, device: torch.device) -> Tensor:
        """`[ΣR, P+ΣR]` bool: which keys of the group each completion token attends to (itself included)."""
        owner = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths)).to(device)
        own = (owner[:, None] == owner[None, :]).tril()
        prompt = torch.ones(len(owner), self.prompt_length, dtype=torch.bool, device=device)
        return torch.cat([prompt, own], dim=1)

    def grid(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ragged ↔ padded: `index [G, R]` into the group's ΣR completion tokens (0 on padding) and `mask [G, R]`."""
        lengths = torch.tensor(self.lengths, device=device)
        column = torch.arange(max(self.lengths), device=device)
        mask = column[None, :] < lengths[:, None]
        index = (lengths.cumsum(0) - lengths)[:, None] + column[None, :]
        return index.masked_fill(~mask, 0), mask


@dataclass(eq=False)
class PackedLayout:
    """All groups of a row, the look biases some of them are sampled under, and what the attention layers hand back.

    It travels to the attention function as a keyword argument of the model's `forward`, so there is no global state.

    Attributes:
        groups: the groups in row order.
        look_bias: per group, `[G, P]` float added to the attention logits of that group's completion queries in every
            layer (the `explore` anchor), or None.
        capture_layers: decoder layers (non-negative) whose post-RoPE query and key are to be kept in `captured`.
        captured: layer → (query `[H, T, D]`, key `[H_kv, T, D]`, scaling), filled during the forward pass.
    """

    groups: tuple[GroupLayout, ...]
    look_bias: Sequence[Tensor | None] | None = None
    capture_layers: tuple[int, ...] = ()
    captured: dict[int, tuple[Tensor, Tensor, float]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(group.total for group in self.groups)

    @cached_property
    def split_sizes(self) -> list[int]:
        """Row lengths in order: prompt and completions of every group in turn."""
        return [size for group in self.groups for size in (group.prompt_length, group.completion_total)]

    def bias(self, index: int) -> Tensor | None:
        return None if self.look_bias is None else self.look_bias[index]

    def completion_masks(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Per group, the SDPA mask `[ΣR, P+ΣR]` of its completion queries: bool, or additive where a bias applies."""
        if self._masks is None:
            self._masks = []
            for index, group in enumerate(self.groups):
                mask = group.completion_mask(device)
                bias = self.bias(index)
                if bias is not None:
                    lengths = torch.tensor(group.lengths, device=device)
                    additive = torch.zeros(mask.shape, dtype=dtype, device=device)
                    additive[:, : group.prompt_length] = torch.repeat_interleave(bias.to(device, dtype), lengths, 0)
                    mask = additive.masked_fill(~mask, float("-inf"))
                self._masks.append(mask)
        return self._masks

    _masks: list[Tensor] | None = field(default=None, repr=False)

    def predictors(self) -> list[int]:
        """Row positions whose output predicts each completion token, in row order (`Σ` over groups of ΣR entries)."""
        positions, start = [], 0
        for group in self.groups:
            last_prompt = start + group.prompt_length - 1
            token = last_prompt + 1
            for length in group.lengths:
                positions.append(last_prompt)
                positions.extend(range(token, token + length - 1))
                token += length
            start += group.total
        return positions
