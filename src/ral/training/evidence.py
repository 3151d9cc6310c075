"""Finds the tokens of a prompt that show the evidence (boxes or document spans), and the tokens of the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ral.attention import Prompt
from ral.data.boxes import tile_mask
from ral.data.record import Record
from ral.data.shown_media import shown_media
from ral.data.spans import answer_span, passage
from ral.errors import DataError
from ral.rewards.answers import Mode, extract_answer

logger = logging.getLogger(__name__)


def evidence_tokens(
    record: Record, prompt: Prompt, processor: Any, num_frames: int | None = None, fps: float | None = None
) -> Tensor | None:
    """`[P]` bool, true on the tokens of `prompt` that show the evidence of its `record`; None where it is not known.

    `num_frames` and `fps` are those that the prompt was encoded with. A box on a frame that was not sampled was not seen, and
    a record with no other is one whose evidence is not known. Media are decoded once more.

    Raises DataError for boxes and spans that do not fit.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    inside = torch.zeros_like(prompt.visual)
    if text := passage(tokenizer, prompt.input_ids, record):
        for box in text.boxes:
            inside[text.tokens][int(box.x0) : int(box.x1)] = True
    elif record.boxes:
        shows = shown_media(record, processor, num_frames, fps)
        if not prompt.tiles:
            raise DataError(
                f"{record.origin}: has boxes, but which pixels the visual tokens of this model stand for is not known; choose "
                "another attention_anchor than evidence, or a model with geometry (docs/models.md)"
            )
        mask = tile_mask(prompt.tiles, shows.boxes, shows.sizes)
        inside[prompt.places] = torch.from_numpy(mask).to(inside.device)
    return inside if bool(inside.any()) else None


def answer_tokens(texts: Sequence[str], ids: Sequence[Tensor], processor: Any, mode: Mode, think: bool) -> Tensor:
    """`[G, R]` bool, true on the tokens that spell the answer of each completion, as `extract_answer` reads it from its text.

    Its tags and the thinking are left out; a completion without a readable answer has none.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    found = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.bool)
    for row, text, tokens in zip(found, texts, ids, strict=True):
        body = extract_answer(text, mode, think)
        if body is not None and (span := answer_span(tokenizer, tokens, body)) is not None:
            row[span] = True
    return found


def require_evidence(records: Sequence[Record]) -> None:
    """Raise DataError unless some record says where its evidence is; warn of those that do not."""
    without = [record for record in records if not record.grounded]
    if len(without) == len(records):
        raise DataError(
            f"attention_anchor='evidence' rewards looks at the evidence, but none of the {len(records):,} records says where it is; "
            "give them boxes (docs/data.md), or choose another attention_anchor"
        )
    if without:
        logger.warning(
            "%d of %d records say nothing of where their evidence is, the first being %s; their attention is not trained",
            len(without),
            len(records),
            without[0].place,
        )
