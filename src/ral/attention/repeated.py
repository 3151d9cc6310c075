"""The repeated way, for models that cannot share a prompt: each completion follows its own copy of the prompt.

This way needs little knowledge of a model. It uses the model's own masks and attention. The model's own eager attention gives the
policy rows of completion queries, if they are needed. The prompt is computed G times.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ral.attention.carried import Carried
from ral.attention.layout import GroupLayout
from ral.attention.rows import Query

#: What models hand to their attention that SDPA would leave out.
UNKNOWN_TO_SDPA = ("softcap", "s_aux", "sinks", "position_bias", "block_indices", "indices")


@dataclass(eq=False)
class RepeatedPass:
    """One forward pass of rows `[prompt | y | padding]` `[N, T]`, N = ΣG; travels as `PackedPass` does.

    Attributes:
        groups: in row order. look_bias, bias_layers, capture_layers: as in `PackedLayout` and `PackedPass`.
        captured: layer → per group the attention of every head `[H, G, R, P+R]` of the completions' queries, float32.
    """

    groups: tuple[GroupLayout, ...]
    look_bias: Sequence[Tensor | None] | None = None
    bias_layers: tuple[int, ...] | None = None
    capture_layers: tuple[int, ...] = ()
    query: Query = "token"
    captured: dict[int, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def prompt_lengths(self) -> Tensor:
        """`[N]`."""
        return torch.tensor([group.prompt_length for group in self.groups for _ in group.lengths])

    def ids(self, prompts: Sequence[Tensor], completions: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Token ids `[N, T]`, padded on the right, and the mask of what is no padding."""
        rows = [torch.cat([prompt, y.to(prompt)]) for prompt, ys in zip(prompts, completions, strict=True) for y in ys]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        return ids, torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]

    def positions(self, prompts: Sequence[Tensor], total: int) -> Tensor:
        """`[3, N, T]` or `[N, T]`: each prompt's own `[…, P]`, then counting on after its largest."""
        rows = []
        for prompt, group in zip(prompts, self.groups, strict=True):
            own = torch.arange(total - group.prompt_length, device=prompt.device) + int(prompt.max()) + 1
            rows += [torch.cat([prompt, own.expand(*prompt.shape[:-1], -1)], dim=-1)] * len(group.lengths)
        return torch.stack(rows, dim=-2)

    def in_prompt(self, ids: Tensor) -> Tensor:
        """`[N, T]` bool, true on prompts."""
        return torch.arange(ids.shape[1], device=ids.device) < self.prompt_lengths.to(ids.device)[:, None]

    def predictors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns `[ΣR]` of the outputs that predict each completion token."""
        lengths = torch.tensor([length for group in self.groups for length in group.lengths])
        rows = torch.arange(len(lengths)).repeat_interleave(lengths)
        places = torch.cat([torch.arange(int(length)) for length in lengths])
        return rows.to(device), (self.prompt_lengths[rows] - 1 + places).to(device)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        """The layer's own attention `[N, T, H, D]`, under a look bias if it has one; what it weighs is kept where it is wanted."""
        bias = self._bias(module.layer_idx, q)
        if bias is not None:
            mask = additive(mask, q, k) + bias
        if module.layer_idx in self.capture_layers:
            self.captured[module.layer_idx] = self._weights(module, q, k, v, additive(mask, q, k), **kwargs)
        return ordinary(module, q, k, v, mask, **kwargs)

    def _bias(self, layer: int, q: Tensor) -> Tensor | None:
        """`[N, 1, T, T]` added to the scores of the completions' queries on their prompt."""
        if self.look_bias is None or not (self.bias_layers is None or layer in self.bias_layers):
            return None
        added, row = q.new_zeros(q.shape[0], 1, q.shape[2], q.shape[2]), 0
        for group, bias in zip(self.groups, self.look_bias, strict=True):
            if bias is not None:
                rows = slice(row, row + len(group.lengths))
                added[rows, 0, group.prompt_length :, : group.prompt_length] = bias.to(added)[:, None]
            row += len(group.lengths)
        return added

    def _weights(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **kwargs: Any) -> list[Tensor]:
        found, row = [], 0
        for group in self.groups:
            rows, longest = slice(row, row + len(group.lengths)), max(group.lengths)
            first = group.prompt_length - (self.query == "predictor")
            at, keys = slice(first, first + longest), slice(0, group.prompt_length + longest)
            part = (q[rows, :, at].float(), k[rows, :, keys].float(), v[rows, :, keys].float())
            here = mask[rows if len(mask) > 1 else slice(None), :, at, keys].float()
            found.append(eager(module)(module, *part, here, **kwargs | {"dropout": 0.0})[1].transpose(0, 1))
            row += len(group.lengths)
        return found


@dataclass(eq=False)
class CachedRows:
    """The state of decoding if a prompt's keys cannot be shared: transformers' cache, with one copy for each row.

    Attributes:
        cache: of the N completions. seen: `[N, P + R]` bool, false on padding. width: completions of one prompt.
        bias, bias_layers: as in `SharedPrefix`.
    """

    cache: Any
    seen: Tensor
    width: int
    bias: Tensor | None = None
    bias_layers: tuple[int, ...] | None = None

    def of(self, prompts: Tensor, rows: Tensor, padded: bool = True) -> CachedRows:
        """As `SharedPrefix.of`; the cache is the same object, cut to these rows."""
        self.cache.reorder_cache(rows)
        bias = None if self.bias is None else self.bias[rows]
        return CachedRows(self.cache, self.seen[rows], len(rows) // len(prompts), bias, self.bias_layers)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the next decoding step; from then on the newest tokens are seen."""
        self.seen = nn.functional.pad(self.seen, (0, 1), value=True)
        mask = self.seen.long()
        return {"attention_mask": mask, "past_key_values": self.cache, "use_cache": True, "prefix": Carried(self)}

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        if self.bias is not None and (self.bias_layers is None or module.layer_idx in self.bias_layers):
            every = nn.functional.pad(self.bias, (0, self.seen.shape[1] - self.bias.shape[1]))
            mask = additive(mask, q, k) + every[:, None, None, -k.shape[2] :].to(
                q
            )  # a window's cache holds the last keys
        return ordinary(module, q, k, v, mask, **kwargs)


def additive(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """A mask `[N, 1, T, K]` as eager attention adds it; None is causal."""
    if mask is None:
        shape = (q.shape[0], 1, q.shape[2], k.shape[2])
        mask = torch.ones(shape, dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    if mask.dtype == torch.bool:
        mask = torch.where(mask, q.new_zeros(()), torch.finfo(q.dtype).min)  # one tensor of its size, and no more
    return mask


def eager(module: nn.Module) -> Any:
    """The eager attention of the file that a layer is from."""
    return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]


def ordinary(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """A layer's output `[N, T, H, D]`: by SDPA, unless the model hands its eager attention something that SDPA does not know."""
    if any(kwargs.get(name) is not None for name in UNKNOWN_TO_SDPA):
        return eager(module)(module, q, k, v, additive(mask, q, k), **kwargs)[0]  # type: ignore[no-any-return]
    return AttentionInterface()["sdpa"](module, q, k, v, mask, **kwargs)[0]
