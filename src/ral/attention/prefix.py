"""Decoding behind prompts whose keys and values are held once, for all completions that continue them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedPrefix:
    """The prompts of a rollout as its N completions see them, one new token of each completion at a time.

    It travels to the attention function as a keyword argument of the model's `forward`. The completions' own keys and values
    are in an ordinary cache; all N are equally long. Attention is computed in at least float32.

    Attributes:
        layers: per decoder layer keys and values `[B, H_kv, P, D]` of B prompts, padded on the left.
        seen: `[B, P]` bool, false on padding.
        owner: `[N]`, which prompt a completion continues; ascending.
        bias: `[N, P]` added to the scores of the prompt's keys, in `bias_layers` (None: in every layer), or None.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    seen: Tensor
    owner: Tensor
    bias: Tensor | None = None
    bias_layers: tuple[int, ...] | None = None

    def of(self, kept: Tensor) -> SharedPrefix:
        """The same for some of the completions `[n]`, in ascending order."""
        return replace(self, owner=self.owner[kept], bias=None if self.bias is None else self.bias[kept])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of the newest tokens to their prompt and their completion, themselves included.

        Args:
            query: `[N, H, 1, D]` after RoPE. key, value: `[N, H_kv, T, D]` of the T completion tokens so far.

        Returns:
            `[N, 1, H, D]`.
        """
        rows, heads, _, channels = query.shape
        prompt_keys, prompt_values = self.layers[layer]
        dtype = prompt_keys.dtype
        q = query.to(dtype).view(rows, key.shape[1], -1, channels) * scaling  # [N, H_kv, H/H_kv, D]
        prompt = (self._by_prompt(q) @ prompt_keys.transpose(-1, -2)).masked_fill(
            ~self.seen[:, None, None], float("-inf")
        )
        prompt = self._by_row(prompt)
        if self.bias is not None and (self.bias_layers is None or layer in self.bias_layers):
            prompt = prompt + self.bias[:, None, None].to(dtype)
        own = q @ key.to(dtype).transpose(-1, -2)
        weights = torch.cat([prompt, own], dim=-1).softmax(dim=-1)
        on_prompt, on_own = weights.split([prompt.shape[-1], own.shape[-1]], dim=-1)
        output = self._by_row(self._by_prompt(on_prompt) @ prompt_values) + on_own @ value.to(dtype)
        return output.reshape(rows, 1, heads, channels).to(query.dtype)

    @cached_property
    def _places(self) -> tuple[int, Tensor, Tensor]:
        """W, the most completions that a prompt has; which completion stands at each of the B·W places; and `[N]` where.

        A place that a prompt with fewer completions leaves over holds completion 0 and is never read.
        """
        counts = torch.bincount(self.owner, minlength=len(self.seen))
        width = int(counts.max())
        rank = torch.arange(len(self.owner), device=self.owner.device) - (counts.cumsum(0) - counts)[self.owner]
        place = self.owner * width + rank
        occupant = torch.zeros(len(self.seen) * width, dtype=torch.long, device=place.device)
        return width, occupant.scatter(0, place, torch.arange(len(place), device=place.device)), place

    def _by_prompt(self, x: Tensor) -> Tensor:
        """`[N, H_kv, M, E]` → `[B, H_kv, W·M, E]`: what belongs to one prompt becomes one matrix."""
        width, occupant, _ = self._places
        _, kv, m, e = x.shape
        return x[occupant].view(-1, width, kv, m, e).transpose(1, 2).reshape(-1, kv, width * m, e)

    def _by_row(self, x: Tensor) -> Tensor:
        """`[B, H_kv, W·M, E]` → `[N, H_kv, M, E]`, the other way."""
        width, _, place = self._places
        prompts, kv, _, e = x.shape
        return x.view(prompts, kv, width, -1, e).transpose(1, 2).reshape(prompts * width, kv, -1, e)[place]
