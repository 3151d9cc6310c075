"""Decodes many completions from prompts whose keys and values are stored once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ral.attention import flash
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

    def put(self, key: Tensor, value: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token's `[N, H_kv, 1, D]` at `place [1]`; all keys and values `[N, H_kv, room, D]`, filled or not."""
        self.keys.index_copy_(2, place, key.to(self.keys.dtype))
        self.values.index_copy_(2, place, value)
        return self.keys, self.values

    def of(self, rows: Tensor) -> OwnCache:
        return OwnCache(self.keys[rows], self.values[rows], self.length)


@dataclass
class Room:
    """How much of the completions' room is filled, known to the device alone.

    With it a step has the same shapes and addresses for every token: it can be recorded once and replayed (`rollouts/graphs.py`).

    Attributes:
        place: `[1]` where the newest token stands; -1 before the first. empty: `[room]` bool, false up to there.
        used: `[N]` int32, the tokens of each completion.
    """

    place: Tensor
    empty: Tensor
    used: Tensor

    @classmethod
    def none(cls, rows: int, device: torch.device) -> Room:
        """No room at all, for so many completions."""
        empty = torch.ones(0, dtype=torch.bool, device=device)
        return cls(torch.full((1,), -1, device=device), empty, torch.zeros(rows, dtype=torch.int32, device=device))

    def step(self) -> None:
        """One more token is filled."""
        self.place.add_(1)
        self.empty.index_fill_(0, self.place, False)
        self.used.add_(1)

    def enlarged(self, by: int) -> Room:
        return Room(self.place.clone(), nn.functional.pad(self.empty, (0, by), value=True), self.used.clone())

    def of(self, rows: Tensor) -> Room:
        return Room(self.place.clone(), self.empty.clone(), self.used[rows])


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
        padded: whether any prompt is padded. The host knows it, and need not ask the device.
        room: of the completions, whose memory is allocated before it is used; None: it grows with them.
    """

    layers: dict[int, tuple[Tensor, Tensor]]
    seen: Tensor
    width: int
    bias: Tensor | None = None
    bias_layers: tuple[int, ...] | None = None
    own: dict[int, OwnCache] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)

    padded: bool = True
    room: Room | None = None

    @property
    def size(self) -> int:
        """N."""
        return len(self.seen) * self.width

    def of(self, prompts: Tensor, rows: Tensor, padded: bool = True) -> SharedPrefix:
        """The same for the prompts `[b]`, ascending, and `rows [b·w]` of the completions: w for each prompt."""
        every = len(prompts) == len(self.seen)
        return replace(
            self,
            layers=self.layers
            if every
            else {i: (keys[prompts], values[prompts]) for i, (keys, values) in self.layers.items()},
            seen=self.seen[prompts],
            width=len(rows) // len(prompts),
            bias=None if self.bias is None else self.bias[rows],
            own={layer: own.of(rows) for layer, own in self.own.items()},
            states={
                layer: states.each(lambda state: state[rows], recording=False) for layer, states in self.states.items()
            },
            padded=padded,
            room=None if self.room is None else self.room.of(rows),
        ).laid_out()

    def with_room(self, size: int) -> SharedPrefix:
        """The same with allocated room for `size` tokens of every completion, those included that are there."""
        room = self.room or Room.none(self.size, self.seen.device)
        more = (0, 0, 0, size - len(room.empty))
        own = self.own or {
            layer: OwnCache(keys.new_empty(shape), values.new_empty(shape[:3] + values.shape[3:]))
            for layer, (keys, values) in self.layers.items()
            for shape in [(self.size, keys.shape[1], 0, keys.shape[3])]
        }
        larger = {
            i: OwnCache(nn.functional.pad(o.keys, more), nn.functional.pad(o.values, more)) for i, o in own.items()
        }
        return replace(self, own=larger, room=room.enlarged(more[3])).laid_out()

    def laid_out(self) -> SharedPrefix:
        """The same, in memory as its products read it: flash kernels token by token, others head by head.

        A model's keys and values stand token by token, and a product for several prompts would copy them in every step. The prompts'
        layers are changed in place, one by one, so that the memory of one more layer is enough.
        """
        order = flash.token_major if self._flash else Tensor.contiguous
        for i, (keys, values) in self.layers.items():
            self.layers[i] = order(keys), order(values)
        own = {i: replace(o, keys=order(o.keys), values=order(o.values)) for i, o in self.own.items()}
        return replace(self, own=own)

    @property
    def _flash(self) -> bool:
        """Whether flash kernels attend; they take no bias."""
        return self.room is not None and self.bias is None and flash.usable(next(iter(self.layers.values()))[1])

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
        if self.room is None:
            own = self.own.setdefault(layer, OwnCache(key.to(value.dtype)[:, :, :0], value[:, :, :0]))
            own_keys, own_values = own.append(key, value)
        else:
            own_keys, own_values = self.own[layer].put(key, value, self.room.place)
            if self._flash and sight.reaches(prompt_keys.shape[2] + own_keys.shape[2]):
                newest = query[:, :, 0].to(value.dtype)
                on_prompt = flash.attend(newest, *self.layers[layer], *self._prompts, scaling)
                on_own = flash.attend(newest, own_keys, own_values, self._zeros, self.room.used, scaling)
                return flash.joined(on_prompt, on_own)[:, None].to(query.dtype)
        q = query.to(value.dtype).view(rows, key.shape[1], -1, channels)  # [N, H_kv, H/H_kv, D]
        scores = torch.cat(
            [self._by_row(self._by_prompt(q) @ prompt_keys.transpose(-1, -2)), q @ own_keys.transpose(-1, -2)], dim=-1
        )
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling
        length = prompt_keys.shape[2]
        if self._hidden is not None:
            scores[..., :length].masked_fill_(self._hidden, float("-inf"))
        if self.room is not None:
            scores[..., length:].masked_fill_(self.room.empty, float("-inf"))
        if self.bias is not None and (self.bias_layers is None or layer in self.bias_layers):
            scores[..., :length] += self.bias[:, None, None]
        if not sight.reaches(scores.shape[-1]):
            place = torch.arange(scores.shape[-1], device=scores.device) - self._padding[:, None]
            newest = place[:, -1:] if self.room is None else length + self.room.place - self._padding[:, None]
            scores.masked_fill_(sight.hides(newest, place)[:, None, None], float("-inf"))
        on_prompt, on_own = scores.softmax(dim=-1).to(value.dtype).split([length, own_keys.shape[2]], dim=-1)
        output = self._by_row(self._by_prompt(on_prompt) @ prompt_values) + on_own @ own_values
        return output.reshape(rows, 1, heads, -1).to(query.dtype)

    @cached_property
    def _hidden(self) -> Tensor | None:
        """`[N, 1, 1, P]`, true on padding; None where there is none. The same in every layer and step."""
        return ~self.seen.repeat_interleave(self.width, dim=0)[:, None, None] if self.padded else None

    @cached_property
    def _prompts(self) -> tuple[Tensor, Tensor]:
        """`[B]` int32 each: tokens of padding before the prompts, and tokens of the prompts."""
        used = self.seen.sum(dim=1, dtype=torch.int32)
        return self.seen.shape[1] - used, used

    @cached_property
    def _zeros(self) -> Tensor:
        """`[N]` int32: the completions begin where their room does."""
        return torch.zeros(self.size, dtype=torch.int32, device=self.seen.device)

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
        return [prefix.size for prefix in self]

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
