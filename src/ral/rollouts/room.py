"""Memory of rollouts: the number of completions that fit on a device, for the sampler and the planner."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ral.attention.prefix import ROOM

#: Of a device's memory that rollouts may take; the weights, the next update and what libraries hold need the rest.
SHARE = 0.25
#: Of one draw, per token of the vocabulary: logits and scores in float32, their softmax, sum and its copy in float64.
DRAW_BYTES = 2 * 4 + 3 * 8


@dataclass(frozen=True)
class RowSize:
    """Sizes that determine the memory of one completion during sampling.

    Attributes:
        layers, heads: of the decoder. key_width: numbers in one token's keys of one layer, over all heads. vocabulary: tokens.
        value_bytes: of a number in keys and values.
    """

    layers: int
    heads: int
    key_width: int
    vocabulary: int
    value_bytes: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> RowSize:
        text = model.config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return cls(
            text.num_hidden_layers, text.num_attention_heads, keys * width, text.vocab_size, model.dtype.itemsize
        )

    def bytes(self, prompt: int, completion: int, group: int) -> float:
        """Bytes of one of `group` completions with `completion` tokens that share a prompt of `prompt` tokens.

        Its keys and values, and its part of the prompt's; of one layer the scores, with their parts and their softmax, in
        float32; a draw.
        """
        room = -(-completion // ROOM) * ROOM
        kept = 2 * self.layers * self.key_width * self.value_bytes * (room + prompt / group)
        return kept + 3 * self.heads * (prompt + completion) * 4 + self.vocabulary * DRAW_BYTES

    def rows(self, memory: float, prompt: int, completion: int, group: int) -> int:
        """Completions that `SHARE` of so many bytes has room for; those of one prompt at least."""
        return max(group, int(SHARE * memory / self.bytes(prompt, completion, group)))


def device_memory(device: torch.device) -> float:
    """Bytes that a process has: all of a GPU, or its part of the machine's. Not what is free, which would change with time."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / processes
