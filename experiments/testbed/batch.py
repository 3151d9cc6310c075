"""Many conversations as one padded batch, for the testbed's own training and measuring."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from ral.data.prompt import build_messages
from ral.data.record import Record


class Turn(NamedTuple):
    """A record, the format it is asked in, and the completion that is to be learnt (empty when only asking)."""

    record: Record
    think: bool
    completion: str = ""


def encode_turns(processor: Any, turns: list[Turn], padding_side: Literal["left", "right"]) -> dict[str, Tensor]:
    """The processor's tensors: `input_ids`, `attention_mask` and `mm_token_type_ids` `[B, T]`, and the pixels.

    Prompts are those of `ral.data.prompt` in the `plain` template. Pad on the right to train, on the left to generate.
    """
    prompts = [
        processor.apply_chat_template(
            build_messages(turn.record, think=turn.think, template="plain"), tokenize=False, add_generation_prompt=True
        )
        for turn in turns
    ]
    return dict(
        processor(
            text=[prompt + turn.completion for prompt, turn in zip(prompts, turns, strict=True)],
            images=[image for turn in turns for image in turn.record.images],
            text_kwargs={"padding": True, "padding_side": padding_side},
            return_tensors="pt",
        )
    )
