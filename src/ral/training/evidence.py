"""Finds the tokens of a prompt that show the evidence (boxes or document spans), and the tokens of the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ral.attention import Prompt
from ral.config import RALConfig
from ral.data.box_density import tile_density
from ral.data.boxes import Part, Size, seen_boxes, shown_part, tile_mask
from ral.data.placebo import MOVES, borrowed, keeps, moved
from ral.data.record import Box, Record
from ral.data.shown_media import shown_media
from ral.data.spans import answer_span, passage
from ral.errors import DataError
from ral.families.tiles import Tile
from ral.objective.evidence_settings import EvidenceFields
from ral.rewards.answers import Mode, extract_answer
from ral.rollouts.group import ScoredGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """What the tokens of a prompt stand for, and the boxes on it: of its pictures, or of its document.

    Attributes:
        tokens: `[N]` where the visual tokens (or the document's) stand in the prompt. length: P, of the prompt.
        tiles: what of which picture each of them shows. sizes: (width, height) of each picture, in the pixels of `boxes`.
        boxes: the evidence; `Box.medium` is the number of a picture. first: the pictures of the first medium.
    """

    tokens: Tensor
    length: int
    tiles: tuple[Tile, ...]
    sizes: Sequence[Size]
    boxes: tuple[Box, ...]
    first: range

    def with_boxes(self, boxes: Sequence[Box]) -> Places:
        """The same prompt with other boxes, those that its tokens show. Raises what `seen_boxes` raises."""
        return replace(self, boxes=tuple(seen_boxes(self.tiles, boxes, self.sizes)))

    def mask(self) -> Tensor | None:
        """`[P]` bool, true on the tokens that show a box; None where they show none."""
        found = tile_mask(self.tiles, self.boxes, self.sizes) if self.boxes else np.zeros(0, dtype=bool)
        return self._on_prompt(found) if found.any() else None

    def density(self, settings: EvidenceFields) -> Tensor | None:
        """`[P]` float32, the mixture of Gaussians on the boxes (`tile_density`); None where the tokens show no box."""
        if not self.boxes:
            return None
        sigma, background = settings.evidence_sigma, settings.evidence_background
        found = tile_density(self.tiles, self.boxes, self.sizes, sigma, background)
        return None if found is None else self._on_prompt(found.astype(np.float32))

    @property
    def parts(self) -> list[Part]:
        """What the tokens show of each picture, in the pixels of `boxes`."""
        return [shown_part(self.tiles, picture, size) for picture, size in enumerate(self.sizes)]

    @property
    def cells(self) -> list[tuple[float, float]]:
        """(width, height) of a visual token of each picture, in the pixels of `boxes`; of its first tile, where it has several."""
        first = {tile.picture: tile for tile in reversed(self.tiles)}
        found = []
        for picture, (width, height) in enumerate(self.sizes):
            (left, top, right, bottom), tile = first[picture].box, first[picture]
            found.append((width * (right - left) / tile.columns, height * (bottom - top) / tile.rows))
        return found

    def _on_prompt(self, values: NDArray) -> Tensor:
        found = torch.from_numpy(values)
        return found.new_zeros(self.length).index_put((self.tokens.cpu(),), found).to(self.tokens.device)


def places_of(
    record: Record, prompt: Prompt, processor: Any, num_frames: int | None = None, fps: float | None = None
) -> Places:
    """The pictures or the document of `record` in its `prompt`, with its boxes. Media are decoded once more.

    `num_frames` and `fps` are those that the prompt was encoded with. A box on a frame that was not sampled, or on a part of a
    picture that the processor crops, was not seen, and is left out.

    Raises DataError for media and spans that do not fit, and for a model whose visual tokens stand for unknown pixels.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    length = len(prompt.input_ids)
    if text := passage(tokenizer, prompt.input_ids, record):
        tokens = torch.arange(length, device=prompt.input_ids.device)[text.tokens]
        return Places(tokens, length, (Tile(0, 1, len(tokens)),), text.sizes, text.boxes, range(1))
    shows = shown_media(record, processor, num_frames, fps, prompt.tiles)
    if not prompt.tiles and shows.pictures:
        raise DataError(
            f"{record.origin}: has boxes, but which pixels the visual tokens of this model stand for is not known; choose "
            "another attention_anchor than evidence, or a model with geometry (docs/models.md)"
        )
    first = shows.media[0] if shows.media else range(0)
    return Places(prompt.places, length, prompt.tiles, shows.sizes, shows.boxes, first)


def evidence_tokens(
    record: Record, prompt: Prompt, processor: Any, num_frames: int | None = None, fps: float | None = None
) -> Tensor | None:
    """`[P]` bool, true on the tokens of `prompt` that show the evidence of its `record`; None where it is not known.

    A record whose boxes are all on frames that were not sampled, or cropped by the processor, is one whose evidence is not known.

    Raises DataError for boxes and spans that do not fit.
    """
    if not record.grounded:
        return None
    return places_of(record, prompt, processor, num_frames, fps).mask()


def with_control(all_places: Sequence[Places], records: Sequence[Record], control: str) -> list[Places]:
    """The places of all groups of a micro-batch with their boxes, or with placebo or spoiled ones (`evidence_control`).

    `shuffled` gives each group with boxes those of the next that has some.
    """
    if control in MOVES:
        return [
            replace(one, boxes=tuple(moved(one.boxes, one.parts, one.cells, control, record.id)))
            for one, record in zip(all_places, records, strict=True)
        ]
    if control == "none":
        return list(all_places)
    if control == "half":
        return [
            one if keeps(record.id) else replace(one, boxes=()) for one, record in zip(all_places, records, strict=True)
        ]
    known = [number for number, one in enumerate(all_places) if one.boxes]
    found = list(all_places)
    for number, other in zip(known, known[1:] + known[:1], strict=True):
        own, lender = all_places[number], all_places[other]
        boxes = borrowed(lender.boxes, lender.sizes, own.sizes) if other != number else ()
        found[number] = replace(own, boxes=tuple(boxes))
    return found


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


def trained_rows(group: ScoredGroup, args: RALConfig, processor: Any) -> Tensor:
    """`[G, R]` bool, the rows that look at the evidence: those that `evidence_rows` names, of rewarded completions."""
    mask = group.mask
    if args.evidence_rows == "answer":
        rows = answer_tokens(group.texts, group.ids, processor, args.scorer, args.think)
    elif args.evidence_rows == "first":
        rows = mask & (torch.arange(mask.shape[1]) < args.evidence_first)
    else:
        rows = mask
    if args.evidence_reward is not None:
        rows = rows & (group.reward.cpu() >= args.evidence_reward)[:, None]
    return rows.to(args.device)


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


def require_media(records: Sequence[Record], names: Sequence[str], args: RALConfig) -> None:
    """Raise DataError unless some record has an image or a video; the settings `names` of `args` do nothing without."""
    if any(record.has_media for record in records):
        return
    told = " and ".join(f"{name}={getattr(args, name)!r}" for name in names)
    raise DataError(
        f"{told} works on images and videos, but none of the {len(records):,} records has any: nothing would be learnt from it; give "
        f"them images or videos (docs/data.md), or leave {' and '.join(names)} out"
    )
