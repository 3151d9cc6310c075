"""The layout of a packed row: `[prompt_1 | y_11 | … | y_1G | prompt_2 | y_21 | …]`.

A group is one prompt with its G completions. Prompt tokens attend causally inside the prompt. Completion tokens attend to the
whole prompt and causally to their own completion. Tokens of different groups do not see each other. The row has no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from ral.attention.sight import EVERYTHING, Sight


@dataclass(frozen=True)
class GroupLayout:
    """One group inside the row: a prompt of `prompt_length` tokens and completions of the given lengths (each ≥ 1).

    `together [P]` numbers the sets of prompt tokens that see each other whatever their order (-1: none); None without any.
    """

    prompt_length: int
    lengths: tuple[int, ...]
    together: Tensor | None = field(default=None, compare=False)

    @property
    def completion_total(self) -> int:
        return sum(self.lengths)

    @property
    def total(self) -> int:
        return self.prompt_length + self.completion_total

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Consecutive completions that attend in one call, to [prompt; the whole block] under a mask.

        A block of T tokens costs T·(P+T) scores, most of the T·T masked out; a call of its own costs a copy of the
        prompt's keys and values. A block is therefore closed before T passes P/4, and holds one completion at least.
        """
        blocks, start, tokens = [], 0, 0
        for i, length in enumerate(self.lengths):
            if i > start and 4 * (tokens + length) > self.prompt_length:
                blocks.append(slice(start, i))
                start, tokens = i, 0
            tokens += length
        return (*blocks, slice(start, len(self.lengths)))

    def prompt_mask(self, sight: Sight, device: torch.device) -> Tensor | None:
        """`[P, P]` bool, true where a prompt token sees another; None where that is just what stands before it."""
        if self.together is None and sight.reaches(self.prompt_length):
            return None
        place = torch.arange(self.prompt_length, device=device)
        seen = place[None, :] <= place[:, None]
        if self.together is not None:
            number = self.together.to(device)
            seen |= (number[:, None] == number[None, :]) & (number >= 0)[:, None]
        return seen if sight.reaches(self.prompt_length) else seen & ~sight.hides(place[:, None], place[None, :])

    def block_mask(
        self, block: slice, bias: Tensor | None, device: torch.device, dtype: torch.dtype, sight: Sight = EVERYTHING
    ) -> Tensor:
        """Additive `[T, P+T]` for the T completion tokens of a block: `bias [G, P]` on the prompt, -inf where unseen.

        On a GPU that of a lone completion without a bias is said by name, causal to the lower right: flash kernels know it,
        and take no mask that is a matrix.
        """
        if bias is None and block.stop - block.start == 1 and device.type == "cuda":
            length = self.lengths[block.start]
            return causal_lower_right(length, self.prompt_length + length)
        lengths = torch.tensor(self.lengths[block])  # on the host, which knows how long the result is
        owner = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)
        mask = torch.zeros(len(owner), self.prompt_length + len(owner), dtype=dtype, device=device)
        if bias is not None:
            mask[:, : self.prompt_length] = bias[block].to(device, dtype)[owner]
        seen = (owner[:, None] == owner[None, :]).tril()
        mask[:, self.prompt_length :].masked_fill_(~seen, float("-inf"))
        if not sight.reaches(self.prompt_length + max(self.lengths[block])):
            place = (
                torch.cat([torch.arange(length, device=device) for length in self.lengths[block]]) + self.prompt_length
            )
            keys = torch.cat([torch.arange(self.prompt_length, device=device), place])
            mask.masked_fill_(sight.hides(place[:, None], keys[None, :]), float("-inf"))
        return mask

    def grid(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ragged ↔ padded: `index [G, R]` into the group's ΣR completion tokens (0 on padding) and `mask [G, R]`."""
        lengths = torch.tensor(self.lengths, device=device)
        column = torch.arange(max(self.lengths), device=device)
        mask = column[None, :] < lengths[:, None]
        index = (lengths.cumsum(0) - lengths)[:, None] + column[None, :]
        return index.masked_fill(~mask, 0), mask


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """All groups of a row, and the look biases some of them are sampled under.

    Attributes:
        groups: the groups in row order.
        look_bias: per group, `[G, P]` float added to the attention logits of that group's completion queries (the
            `explore` anchor), or None.
        bias_layers: decoder layers (non-negative) that feel the bias; None: every layer.
    """

    groups: tuple[GroupLayout, ...]
    look_bias: Sequence[Tensor | None] | None = None
    bias_layers: tuple[int, ...] | None = None

    @property
    def total(self) -> int:
        return sum(group.total for group in self.groups)

    @cached_property
    def split_sizes(self) -> list[int]:
        """Lengths of the row's pieces in order: the prompt and the completion blocks of every group in turn."""
        return [
            size
            for group in self.groups
            for size in (group.prompt_length, *(sum(group.lengths[block]) for block in group.blocks))
        ]

    def biased(self, layer: int) -> bool:
        return self.look_bias is not None and (self.bias_layers is None or layer in self.bias_layers)

    def bias(self, index: int, layer: int) -> Tensor | None:
        """The look bias of one group in one layer."""
        return self.look_bias[index] if self.look_bias is not None and self.biased(layer) else None

    def block_masks(
        self, layer: int, device: torch.device, dtype: torch.dtype, sight: Sight = EVERYTHING
    ) -> list[list[Tensor]]:
        """Per group and block the mask `[T, P+T]` of its queries; built once for all layers that see as far and are (not) biased."""
        biased = self.biased(layer)
        if (biased, sight) not in self._masks:
            self._masks[biased, sight] = [
                [group.block_mask(block, self.bias(i, layer), device, dtype, sight) for block in group.blocks]
                for i, group in enumerate(self.groups)
            ]
        return self._masks[biased, sight]

    def prompt_masks(self, sight: Sight, device: torch.device) -> list[Tensor | None]:
        """Per group its `prompt_mask`; built once for all layers that see as far."""
        if sight not in self._prompt_masks:
            self._prompt_masks[sight] = [group.prompt_mask(sight, device) for group in self.groups]
        return self._prompt_masks[sight]

    def in_prompt(self, device: torch.device) -> Tensor:
        """`[1, T]` bool, true on prompts."""
        own, prompt = self.sequences(device)
        return (own == prompt)[None]

    def sequences(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For every token `[T]` the number of its sequence (prompts and completions in row order), and of its prompt."""
        lengths = [length for group in self.groups for length in (group.prompt_length, *group.lengths)]
        own = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        sizes = torch.tensor([1 + len(group.lengths) for group in self.groups])
        prompts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return own.to(device), prompts[own].to(device)

    _masks: dict[tuple[bool, Sight], list[list[Tensor]]] = field(default_factory=dict, repr=False)
    _prompt_masks: dict[Sight, list[Tensor | None]] = field(default_factory=dict, repr=False)

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
