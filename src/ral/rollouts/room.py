"""Memory of rollouts: the number of completions that fit on a device, for the sampler and the planner."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ral.attention.held import held_by_layers
from ral.attention.models import why_repeated
from ral.attention.prefix import ROOM

#: Of a device's memory that rollouts may take; the weights, the next update and what libraries hold need the rest.
SHARE = 0.25
#: Of one draw, per token of the vocabulary: logits and scores in float32, their softmax, sum and its copy in float64.
DRAW_BYTES = 2 * 4 + 3 * 8


@dataclass(frozen=True)
class RowSize:
    """Sizes that determine the memory of one completion during sampling.

    Attributes:
        token, state: numbers that all decoder layers hold of one token (keys and values), and of one completion (states).
        heads: of the decoder's queries. vocabulary: tokens.
        value_bytes: of a number in keys and values; a state's take four.
        shared: whether the completions of a prompt share its keys and values.
    """

    token: int
    state: int
    heads: int
    vocabulary: int
    value_bytes: float
    shared: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel) -> RowSize:
        text, held = model.config.get_text_config(), held_by_layers(model)
        return cls(
            sum(layer.token for layer in held),
            sum(layer.state for layer in held),
            text.num_attention_heads,
            text.vocab_size,
            model.dtype.itemsize,
            why_repeated(model) is None,
        )

    def bytes(self, prompt: int, completion: int, group: int) -> float:
        """Bytes of one of `group` completions with `completion` tokens, behind a prompt of `prompt` tokens.

        Its keys and values, its part of the prompt's, and its states; of one layer the scores, with their parts and their
        softmax, in float32; a draw.
        """
        room = -(-completion // ROOM) * ROOM
        kept = self.token * self.value_bytes * (room + prompt / (group if self.shared else 1)) + 4 * self.state
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
