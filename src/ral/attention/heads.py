"""Chooses the heads whose attention a layer's policy rows are the mean of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from transformers import PreTrainedModel

from ral.errors import ConfigError

#: The heads of every captured layer: a list for one layer, or a list of lists; None: the mean of all heads.
Heads = Sequence[int] | Sequence[Sequence[int]] | None

#: What heads are ranked by: their attention on the evidence of records, or on all visual tokens.
Ranking = Literal["evidence", "visual"]


@dataclass(frozen=True)
class TopHeads:
    """Heads that a run chooses at its start: of every layer the `top` best on so many `records`, ranked `by` their attention."""

    top: int
    by: Ranking
    records: int = 32

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TopHeads:
        """From `{top: k, by: evidence|visual}`, with `records` or without. Raises ConfigError for anything else."""
        numbers = [values.get("top"), values.get("records", 1)]
        known = {"top", "by"} <= values.keys() <= {"top", "by", "records"} and values["by"] in get_args(Ranking)
        if not known or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
            raise ConfigError(
                f"attention_heads={dict(values)!r} is not known; write {{top: 8, by: evidence}} or {{top: 8, by: visual}}, and "
                "records: 64 where more than 32 records are to be looked at"
            )
        return cls(**values)


def per_layer(heads: Heads, layers: int, name: str = "attention_heads") -> tuple[tuple[int, ...], ...] | None:
    """One tuple of heads for each of so many layers; None for all heads.

    Raises:
        ConfigError: lists for another number of layers, and a list that is empty, holds a head twice or a negative one.
    """
    if heads is None:
        return None
    lists: list[Any] = [heads] if all(isinstance(head, int) for head in heads) else list(heads)
    if len(lists) != layers or not all(isinstance(one, Sequence) for one in lists):
        raise ConfigError(
            f"{name}={heads!r} does not name the heads of {layers} layers; give one list for one layer, or a list of lists, "
            "one for each layer of attention_layers"
        )
    for one in lists:
        if not one or len(set(one)) < len(one) or any(not isinstance(head, int) or head < 0 for head in one):
            raise ConfigError(
                f"{name} contains {list(one)!r}; a list names one head at least, each once, by its number from 0"
            )
    return tuple(tuple(one) for one in lists)


def heads_of(
    model: PreTrainedModel, layers: Sequence[int], heads: Heads, name: str = "attention_heads"
) -> Mapping[int, tuple[int, ...]]:
    """Layer → its chosen heads; empty where rows are the mean of all.

    Args:
        layers: numbers from 0, as `resolve_layers` gives them.

    Raises:
        ConfigError: a head that the model does not have, and what `per_layer` refuses.
    """
    chosen = per_layer(heads, len(layers), name)
    if chosen is None:
        return {}
    count = head_count(model)
    for layer, wanted in zip(layers, chosen, strict=True):
        if max(wanted) >= count:
            raise ConfigError(
                f"{name} contains {max(wanted)}, but layer {layer} of the model has {count} heads, 0 to {count - 1}"
            )
    return dict(zip(layers, chosen, strict=True))


def head_count(model: PreTrainedModel) -> int:
    """Query heads of every layer with attention."""
    return int(model.config.get_text_config().num_attention_heads)


def selected(q: Tensor, k_prompt: Tensor, k_own: Tensor, heads: Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """The query of the chosen heads, and the keys of each: heads that share keys get a copy of their own.

    Args:
        q: `[H, G, R, D]`. k_prompt: `[H_kv, P, D]`. k_own: `[H_kv, G, R, D]`. heads: None keeps all as they are.

    Returns:
        `[n, G, R, D]`, `[n, P, D]` and `[n, G, R, D]` of n heads.
    """
    if heads is None:
        return q, k_prompt, k_own
    keys = [head * len(k_prompt) // len(q) for head in heads]
    return q[list(heads)], k_prompt[keys], k_own[keys]
