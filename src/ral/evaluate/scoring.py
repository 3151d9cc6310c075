"""Turns answers into items: scores, attention maps, probes, and pictures to show."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from ral.attention import prepare_prompt
from ral.data.shown_media import ShownMedia, shown_media
from ral.data.spans import Passage, answer_span, passage
from ral.errors import DataError
from ral.evaluate.answering import Answered, encode, look_at_answers
from ral.evaluate.grounding import Grounding, grounding
from ral.evaluate.items import Item, Json
from ral.evaluate.looking import Look, unseen
from ral.evaluate.probes import Seen, neutral_record, probe
from ral.evaluate.settings import EvalSettings, parse_probes
from ral.evaluate.sheets import sheet, sheet_map
from ral.evaluate.tasks import Task
from ral.runs.names import MEDIA

#: Longest side, in pixels, of an image kept to be shown.
SHOWN_SIDE = 1024


def items_of(
    model: nn.Module,
    processor: Any,
    task: Task,
    answered: Sequence[Answered],
    settings: EvalSettings,
    shown: set[str],
    output: Path | None,
    step: int | None = None,
) -> Iterator[Item]:
    """Yield the items of one batch. Maps and images of the records in `shown` are stored, the images in the folder `output`;
    without a folder, neither is. `settings.layer` counts from the first layer; `step` is the step of a look during training.

    Raises DataError for boxes that lie outside of their medium.
    """
    scored = [task.judge(item.record, item.text, mode=settings.scorer, think=settings.think) for item in answered]
    wanted = [item.record.grounded or item.record.id in shown for item in answered]
    answers = [one.prediction if look else None for one, look in zip(scored, wanted, strict=True)]
    looks = look_at_answers(model, processor, answered, answers, settings)
    media = [
        _shown_media(processor, item, settings) if seen else None for item, seen in zip(answered, wanted, strict=True)
    ]
    probed = _probes(model, processor, answered, answers, looks, media, settings)
    for item, one, look, shows in zip(answered, scored, looks, media, strict=True):
        layers, reported = _layers(item, look, shows, settings.layer)
        yield Item(
            step=step,
            id=item.record.id,
            question=item.record.question,
            solution=item.record.solution,
            completion=item.text,
            prediction=one.prediction,
            correct=one.correct,
            unparsed=one.score is None,
            truncated=item.completion.truncated,
            tokens=len(item.completion.ids),
            cluster=one.cluster,
            grounding=reported,
            layers=layers,
            probes=probed.get(item.record.id),
            **_shown(item.record.id, look, shows, settings.layer, output if item.record.id in shown else None),
        )


def _shown_media(processor: Any, item: Answered, settings: EvalSettings) -> ShownMedia | Passage:
    """The media under the maps of one item: its document, or else its images and videos."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return passage(tokenizer, item.prompt.input_ids, item.record) or shown_media(
        item.record, processor, settings.num_frames, settings.fps, item.prompt.tiles
    )


def _probes(
    model: nn.Module,
    processor: Any,
    answered: Sequence[Answered],
    answers: Sequence[str | None],
    looks: Sequence[Look | None],
    media: Sequence[ShownMedia | Passage | None],
    settings: EvalSettings,
) -> dict[str, Json]:
    """Results of the probes for items with boxes and an answer, by id."""
    wanted = parse_probes(settings.probes)
    chosen, items = [], []
    for item, body, look, shows in zip(answered, answers, looks, media, strict=True):
        if wanted and body and look and isinstance(shows, ShownMedia) and shows.boxes:
            span = answer_span(getattr(processor, "tokenizer", processor), item.completion.ids, body)
            assert span is not None  # there is a look at its first token
            chosen.append(item)
            items.append(Seen(item.record.id, item.prompt, item.completion.ids, span, look, shows.boxes, shows.sizes))
    if not items:
        return {}
    neutral = []
    if {"relative", "sinks"} & set(wanted):
        for item in chosen:
            inputs = encode(processor, neutral_record(item.record), settings)
            neutral.append(prepare_prompt(model, inputs, item.prompt.features))
    return dict(zip((item.id for item in items), probe(model, items, neutral, wanted), strict=True))


def _layers(
    item: Answered, look: Look | None, shows: ShownMedia | Passage | None, layer: int
) -> tuple[tuple[Grounding | None, ...] | None, Grounding | None]:
    """The grounding of every decoder layer (None for one without attention), and the one that is reported.

    None without a look, or without boxes that the model saw to hold it against. Cells that no token shows are left out.
    """
    if look is None or shows is None or not shows.boxes:
        return None, None
    boxes, sizes = shows.boxes, shows.sizes
    cropped = unseen(item.prompt) if isinstance(shows, ShownMedia) else None
    try:
        found = [
            None if seen is None else grounding(seen.maps, boxes, sizes, seen.visual_share, cropped)
            for seen in look.layers
        ]
        chosen = look.chosen
        reported = (
            found[layer] if chosen is None else grounding(chosen.maps, boxes, sizes, chosen.visual_share, cropped)
        )
    except DataError as error:
        raise DataError(f"{item.record.origin}: {error}") from error
    return tuple(found), reported


def _shown(id: str, look: Look | None, shows: ShownMedia | Passage | None, layer: int, output: Path | None) -> Json:
    """The medium that is shown: the first with a box, else the first; and its map, boxes and file. A video is a sheet of the
    frames that have maps, at the seconds `times`."""
    if not isinstance(shows, ShownMedia) or not shows.pictures:
        return {}
    medium = shows.medium_of(shows.boxes[0].medium if shows.boxes else 0)
    whole = sheet(shows, medium)
    found: Json = {"size": list(whole.picture.size), "boxes": whole.boxes}
    if whole.times:
        found["times"] = [round(time, 3) for time in whole.times]
    if output is not None:
        found["image"] = f"{MEDIA}/{_file_name(id)}.png"
        small = whole.picture.copy()
        small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        (output / MEDIA).mkdir(parents=True, exist_ok=True)
        small.save(output / found["image"])
        if look is not None:
            found["map"] = _map(sheet_map(look.at(layer).maps[medium.start : medium.stop]))
    return found


def _map(values: NDArray) -> Json:
    return {"grid": list(values.shape), "values": [float(f"{value:.5g}") for value in values.ravel()]}


def _file_name(id: str) -> str:
    """`id` where it can be the name of a file, else a digest of it."""
    if re.fullmatch(r"\w[\w. -]{0,99}", id, re.ASCII):
        return id
    return hashlib.blake2b(id.encode(), digest_size=8).hexdigest()
