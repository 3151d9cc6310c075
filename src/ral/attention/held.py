"""The numbers that decoder layers hold of a sequence while it grows: keys and values of each token, and states."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ral.attention import fork
from ral.attention.carried import Carried
from ral.attention.models import make_capturable
from ral.attention.prefix import Record


@dataclass(frozen=True)
class Held:
    """Numbers that one decoder layer holds: `keys` and `values` of every token, over all heads, and `state` of the whole sequence."""

    keys: int = 0
    values: int = 0
    state: int = 0

    @property
    def token(self) -> int:
        return self.keys + self.values


def held_by_layers(model: PreTrainedModel) -> tuple[Held, ...]:
    """What each decoder layer of a model holds, as rollouts hold it.

    A copy of the model without weights runs two tokens on the meta device and records what its layers hand to attention. So
    compressed keys, keys that layers share and states of every kind are counted without knowing the architecture. A model
    that needs values to run is counted from its configuration, as if its layers were alike.
    """
    base, record = make_capturable(model), Record()
    text = base.config.get_text_config()
    try:
        _run_without_weights(base, record)
    except RuntimeError:
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        return (Held(width, width),) * text.num_hidden_layers
    return tuple(_held(record, layer) for layer in range(text.num_hidden_layers))


@torch.no_grad()
def _run_without_weights(base: PreTrainedModel, record: Record) -> None:
    with torch.device("meta"):
        twin = decoder_without_weights(base).eval()
        twin.set_experts_implementation("batched_mm")  # grouped products look at how many tokens an expert has
        fork.install(twin)
        twin(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True, record=Carried(record))


def decoder_without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model's decoder, to be made on the meta device; in 16 bits, in which experts can be multiplied."""
    decoder: Any = model.get_decoder()
    twin = type(decoder)(copy.deepcopy(decoder.config)).bfloat16()
    twin.config.pad_token_id = None  # some models look for it among the tokens
    return twin  # type: ignore[no-any-return]


def _held(record: Record, layer: int) -> Held:
    keys, values = record.layers.get(layer, (None, None))
    states = record.states.get(layer)
    held = Counter[str]()
    if keys is not None and values is not None:
        held = Counter(keys=keys[0, :, 0].numel(), values=values[0, :, 0].numel())
    if states is not None:
        held["state"] = sum(state.numel() for part in (states.conv, states.recurrent) for state in part.values())
    return Held(**held)
