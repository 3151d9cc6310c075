"""End-of-sequence tokens: the same in training, evaluation, on a server and in saved models."""

from __future__ import annotations

from typing import Any

from ral.data.templates import turn_end


def eos_token_ids(model: Any, processor: Any = None) -> tuple[int, ...]:
    """The end-of-sequence tokens of a model: its generation config's, then its tokenizer's and its chat template's.

    A base model's configuration names the end of a text, and its template the end of a turn. Sampling must stop at both.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = model.generation_config.eos_token_id
    ends = [*ids] if isinstance(ids, list | tuple) else [ids]
    if tokenizer is not None:
        ends += [tokenizer.eos_token_id, turn_end(processor)]
    return tuple(dict.fromkeys(end for end in ends if end is not None))


def write_eos_tokens(model: Any, processor: Any) -> None:
    """Write all end tokens into the generation config, which is saved with the model and read by every engine."""
    ends = eos_token_ids(model, processor)
    if ends:
        model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
