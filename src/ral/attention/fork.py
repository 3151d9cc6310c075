"""Recurrent layers in a packed row: the state after the prompt is forked once per completion.

Such a layer (a gated delta rule, Mamba, a short convolution) reads and writes its state through transformers' cache. It is run
twice for a group: on the prompt, and on the completions, padded on the right, from the state that the prompt left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ral.attention.layout import PackedLayout
from ral.attention.packed import PackedPass
from ral.attention.prefix import Prefixes

#: Methods of transformers' cache that only layers with a state call.
WRITES = {"update_conv_state", "update_recurrent_state"}


class States:
    """The states of one layer, with the methods of transformers' cache; unlike there, they have a gradient.

    Attributes:
        conv, recurrent: number of the state → its values `[B, …]`. recording: no state may be overwritten in place.
    """

    def __init__(self, conv: dict[int, Tensor], recurrent: dict[int, Tensor], recording: bool = True):
        self.conv, self.recurrent, self.recording = conv, recurrent, recording

    @classmethod
    def empty(cls) -> States:
        return cls({}, {})

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.conv.get(state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.recurrent.get(state_idx)

    def has_previous_state(self, *_: Any) -> bool:
        return bool(self.conv)

    def is_recording_past(self, layer_idx: int) -> bool:
        return self.recording

    def update_conv_state(
        self, new: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Keep the last columns of [before; new], as many as the kernel is wide; all of them are returned."""
        size = conv_kernel_size or new.shape[-1]
        before = self.conv.get(state_idx)
        if before is None:
            full = nn.functional.pad(new, (max(size - new.shape[-1], 0), 0))
        else:
            size, full = before.shape[-1], torch.cat([before, new], dim=-1)
        self.conv[state_idx] = full[..., full.shape[-1] - size :]
        return full

    def update_recurrent_state(self, new: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        self.recurrent[state_idx] = new
        return new

    @classmethod
    def together(cls, parts: Sequence[States]) -> States:
        """Join the states of several batches into one; the result may be changed in place."""
        if len(parts) == 1:
            return parts[0]
        conv = {i: torch.cat([part.conv[i] for part in parts]) for i in parts[0].conv}
        return cls(
            conv, {i: torch.cat([part.recurrent[i] for part in parts]) for i in parts[0].recurrent}, recording=False
        )

    def split(self, sizes: list[int]) -> list[States]:
        """Split joined states into those of the batches again."""
        if len(sizes) == 1:
            return [self]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [
            self.each(partial(torch.narrow, dim=0, start=start, length=size), recording=False)
            for start, size in zip(starts, sizes, strict=True)
        ]

    def each(self, take: Callable[[Tensor], Tensor], recording: bool = True) -> States:
        """Apply `take` to every state."""
        conv, recurrent = ({i: take(state) for i, state in held.items()} for held in (self.conv, self.recurrent))
        return States(conv, recurrent, recording)


@cache
def carries_state(kind: Any) -> bool:
    """Whether the layers of a class carry a state."""
    return bool(WRITES & set(inspect.unwrap(kind.forward).__code__.co_names))


def has_state(module: nn.Module) -> bool:
    """Whether a layer carries a state, understanding a packed row or not."""
    return any(carries_state(kind) for kind in type(module).__mro__ if "forward" in vars(kind))


def install(model: nn.Module) -> None:
    """Let the layers of a model that carry a state understand a packed row; idempotent.

    Their class is exchanged for one that is derived from it (as FSDP2 does), so that copies of the model are their own.
    """
    for module in model.modules():
        kind: Any = type(module)
        if carries_state(kind):
            module.__class__ = _forking(kind)


@cache
def _forking(kind: Any) -> Any:
    named = inspect.signature(inspect.unwrap(kind.forward)).parameters
    cache_name = next(name for name in ("cache_params", "past_key_values") if name in named)

    @torch.compiler.disable  # as `packed_attention`: it counts lengths in Python
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        packed, prefix, record = (kwargs.pop(name, None) for name in ("packed", "prefix", "record"))
        if packed is not None and isinstance(packed.value, PackedPass):

            def run(tokens: Tensor, states: States) -> Tensor:
                return kind.forward(self, tokens, **kwargs | {cache_name: states, "attention_mask": None})

            return _forked(run, hidden_states, packed.value.layout)
        if record is not None:
            kwargs[cache_name] = record.value.states.setdefault(self.layer_idx, States.empty())
        if prefix is None or not isinstance(prefix.value, Prefixes):
            return kind.forward(self, hidden_states, *args, **kwargs)
        states = States.together([one.states[self.layer_idx] for one in prefix.value])
        output = kind.forward(self, hidden_states, *args, **kwargs | {cache_name: states})
        for one, own in zip(prefix.value, states.split(prefix.value.sizes), strict=True):
            one.states[self.layer_idx] = own
        return output

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _forked(run: Callable[[Tensor, States], Tensor], hidden: Tensor, layout: PackedLayout) -> Tensor:
    """The layer's output `[1, T, d]` of a packed row: `run` on each prompt, then on its completions as a batch."""
    pieces, start = [], 0
    for group in layout.groups:
        prompt, own = hidden[:, start : start + group.total].split([group.prompt_length, group.completion_total], dim=1)
        states = States.empty()
        pieces.append(run(prompt, states))
        index, mask = group.grid(hidden.device)
        index = nn.functional.pad(index, (0, 1))  # two tokens or more: a single one would be a step of decoding
        forked = states.each(partial(torch.repeat_interleave, repeats=len(index), dim=0))
        pieces.append(run(own[0][index], forked)[:, :-1][mask][None])
        start += group.total
    return torch.cat(pieces, dim=1)
