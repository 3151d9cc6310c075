"""Decodes many completions from prompts whose keys and values are stored once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ral.attention.carried import Carried
from ral.attention.sight import EVERYTHING, Sight

#: Tokens by which the room for the completions' keys and values grows where it is used up.
ROOM = 64


@dataclass
class OwnCache:
    """Keys and values `[N, H_kv, room, D]` of the completions in one layer; the first `length` tokens are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token's `[N, H_kv, 1, D]`; all keys and values `[N, H_kv, length, D]`."""
        if self.length == self.keys.shape[2]:
            self.keys, self.values = (nn.functional.pad(held, (0, 0, 0, ROOM)) for held in (self.keys, self.values))
        self.keys[:, :, self.length] = key[:, :, 0]
        self.values[:, :, self.length] = value[:, :, 0]
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def of(self, rows: Tensor) -> OwnCache:
        return OwnCache(self.keys[rows], self.values[rows], self.length)


@dataclass(eq=False)
class Record:
    """Picks up, in a rollout's pass over its prompts, what the layers hold: keys and values as attention takes them, and states.

    A cache of transformers would not do: theirs compress keys in some models, cut them to a window in others, and share them
    between layers in a third kind.
    """

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SharedPrefix:
    """B prompts of a rollout with W completions each, which grow by one token at a time.

    It travels to the attention function as a keyword argument of the model's `forward`, and is the only cache. The N = B·W
    completions stand in the order of their prompts. Products are in the dtype of the values, scores and softmax in at least
    float32.

    Attributes:
        layers: per decoder layer keys and values `[B, H_kv, P, D]` of the prompts, padded on the left.
        seen: `[B, P]` bool, false on padding.
        width: W.
        bias: `[N, P]` added to the scores of the prompt's keys, in `bias_layers` (None: in every layer), or None.
        own: per decoder layer what the completions hold; `attend` fills it.
        states: per decoder layer that carries a state, the completions' (`fork.States`).
    """

    layers: Mapping[int, tuple[Tensor, Tensor]]
    seen: Tensor
    width: int
    bias: Tensor | None = None
    bias_layers: tuple[int, ...] | None = None
    own: dict[int, OwnCache] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)

    def of(self, prompts: Tensor, rows: Tensor) -> SharedPrefix:
        """The same for the prompts `[b]`, ascending, and `rows [b·w]` of the completions: w for each prompt."""
        every = len(prompts) == len(self.seen)
        return SharedPrefix(
            self.layers
            if every
            else {i: (keys[prompts], values[prompts]) for i, (keys, values) in self.layers.items()},
            self.seen[prompts],
            len(rows) // len(prompts),
            None if self.bias is None else self.bias[rows],
            self.bias_layers,
            {layer: own.of(rows) for layer, own in self.own.items()},
            {layer: states.each(lambda state: state[rows], recording=False) for layer, states in self.states.items()},
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sight: Sight = EVERYTHING
    ) -> Tensor:
        """Attention of the newest tokens to their prompt and their completion, themselves included.

        Args:
            query: `[N, H, 1, D]` after RoPE. key, value: `[N, H_kv, 1, D]` of the same tokens, which are kept.

        Returns:
            `[N, 1, H, D]`.
        """
        rows, heads, _, channels = query.shape
        prompt_keys, prompt_values = self.layers[layer]
        own = self.own.setdefault(layer, OwnCache(key.to(value.dtype)[:, :, :0], value[:, :, :0]))
        own_keys, own_values = own.append(key, value)
        q = query.to(value.dtype).view(rows, key.shape[1], -1, channels)  # [N, H_kv, H/H_kv, D]
        scores = torch.cat(
            [self._by_row(self._by_prompt(q) @ prompt_keys.transpose(-1, -2)), q @ own_keys.transpose(-1, -2)], dim=-1
        )
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling
        length = prompt_keys.shape[2]
        if self._hidden is not None:
            scores[..., :length].masked_fill_(self._hidden, float("-inf"))
        if self.bias is not None and (self.bias_layers is None or layer in self.bias_layers):
            scores[..., :length] += self.bias[:, None, None]
        if not sight.reaches(length + own.length):
            place = torch.arange(scores.shape[-1], device=scores.device) - self._padding[:, None]
            scores.masked_fill_(sight.hides(place[:, -1:], place)[:, None, None], float("-inf"))
        on_prompt, on_own = scores.softmax(dim=-1).to(value.dtype).split([length, own.length], dim=-1)
        output = self._by_row(self._by_prompt(on_prompt) @ prompt_values) + on_own @ own_values
        return output.reshape(rows, 1, heads, -1).to(query.dtype)

    @cached_property
    def _hidden(self) -> Tensor | None:
        """`[N, 1, 1, P]`, true on padding; None where there is none. The same in every layer and step."""
        return None if bool(self.seen.all()) else ~self.seen.repeat_interleave(self.width, dim=0)[:, None, None]

    @cached_property
    def _padding(self) -> Tensor:
        """`[N]` tokens of padding before each row's prompt."""
        return (~self.seen).sum(dim=1).repeat_interleave(self.width, dim=0)

    def _by_prompt(self, x: Tensor) -> Tensor:
        """`[N, H_kv, M, E]` → `[B, H_kv, W·M, E]`: what belongs to one prompt becomes one matrix."""
        rows, kv, _, e = x.shape
        return x.unflatten(0, (-1, self.width)).transpose(1, 2).reshape(rows // self.width, kv, -1, e)

    def _by_row(self, x: Tensor) -> Tensor:
        """`[B, H_kv, W·M, E]` → `[N, H_kv, M, E]`, the other way."""
        return x.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1)


class Prefixes(tuple[SharedPrefix, ...]):
    """Several prefixes whose completions are decoded together, one after the other; their lengths may differ."""

    __slots__ = ()

    @property
    def sizes(self) -> list[int]:
        """Completions of each."""
        return [len(prefix.seen) * prefix.width for prefix in self]

    def arguments(self) -> dict[str, Any]:
        """Arguments of a decoding step, besides the newest tokens and their positions."""
        # A prepared 4-D mask is passed through as it is; what is padding, the prefixes know.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self[0].seen.device)
        return {"attention_mask": mask, "prefix": Carried(self), "use_cache": False}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sight: Sight = EVERYTHING
    ) -> Tensor:
        """See `SharedPrefix.attend`."""
        parts = zip(self, *(x.split(self.sizes) for x in (query, key, value)), strict=True)
        return torch.cat([prefix.attend(layer, *qkv, scaling, sight) for prefix, *qkv in parts])
