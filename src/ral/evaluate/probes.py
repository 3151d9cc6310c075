"""Probes of whether the attended places are evidence, each requested by name.

heads         the grounding metrics of every head of every layer ("localisation heads", arXiv 2503.06287)
relative      of the map divided by the map for a neutral question about the same image (arXiv 2502.17422)
sinks         without the visual tokens that are attended whatever is asked (arXiv 2503.03321)
masking       how much less likely the answer becomes when the completion cannot attend to the box, against as many
              random visual tokens
masking-text  the same, with the box hidden from all text after the image: if it comes first, the question's tokens look
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ral.attention import Prompt, forward_groups
from ral.data.boxes import tile_mask
from ral.data.record import IMAGE_MARK, VIDEO_MARK, Box, Record
from ral.evaluate.grounding import (
    Grounding,
    attention_sinks,
    control_mask,
    grounding,
    mean_grounding,
    relative_attention,
)
from ral.evaluate.items import Json
from ral.evaluate.looking import Look, as_maps, look_on, prompt_and_rest, unseen
from ral.families.tiles import showing
from ral.statistics import mean_interval

#: The neutral question of arXiv 2502.17422.
NEUTRAL = "Write a general description of the image."
#: Random sets of visual tokens that the box is compared with.
CONTROLS = 4


def neutral_record(record: Record) -> Record:
    """The neutral question about the same media, before or after the text as in the record."""
    marks = "".join(re.findall(f"{IMAGE_MARK}|{VIDEO_MARK}", record.problem))
    question_first = bool(marks) and not record.problem.lstrip().startswith((IMAGE_MARK, VIDEO_MARK))
    problem = f"{NEUTRAL} {marks}" if question_first else f"{marks}{NEUTRAL}"
    return replace(record, problem=problem, problem_type="free-form", options=(), origin=f"{record.origin} (neutral)")


@dataclass(frozen=True)
class Seen:
    """One item with boxes and an answer: its prompt, completion and the answer's tokens in it, its look, its boxes, and
    the `sizes` (width, height) of its pictures in pixels."""

    id: str
    prompt: Prompt
    completion: torch.Tensor
    answer: slice
    look: Look
    boxes: Sequence[Box]
    sizes: Sequence[tuple[int, int]]

    @cached_property
    def unseen(self) -> tuple[NDArray[np.bool_], ...]:
        """The cells of its maps that no token shows; no measure is taken of them."""
        return unseen(self.prompt)


def probe(model: nn.Module, items: Sequence[Seen], neutral: Sequence[Prompt], probes: Sequence[str]) -> list[Json]:
    """The results of `probes` for every item, as `items.jsonl` holds them.

    Args:
        neutral: the prompts of `neutral_record`s; needed for `relative` and `sinks`, else empty.
    """
    rows: list[Json] = [{} for _ in items]
    neutral_rows = look_on(model, neutral) if neutral else []
    for number, (item, row) in enumerate(zip(items, rows, strict=True)):
        if "heads" in probes:
            row["heads"] = [
                [_metrics(item, head.maps, head.visual_share) for head in one.heads] if one else []
                for one in item.look.layers
            ]
        if {"relative", "sinks"} & set(probes):
            row |= _against_neutral(item, neutral_rows[number], probes)
    for name in ("masking", "masking-text"):
        if name in probes:
            for row, found in zip(rows, masking_check(model, items, all_text=name == "masking-text"), strict=True):
                row[name] = found
    return rows


def _against_neutral(item: Seen, neutral: Mapping[int, NDArray], probes: Sequence[str]) -> Json:
    """`relative` and `sinks` of one item, from the neutral prompt's rows `[rows, N]` of every layer; None for one without attention."""
    depth = len(item.look.layers)
    relative: list[Json | None] = [None] * depth
    kept, counts = relative.copy(), [0] * depth
    for layer, one in enumerate(item.look.layers):
        if one is None:
            continue
        asked = _on_pictures(one.maps)
        # Of a picture in several grids, the map is one: a token of a coarser grid is spread over its cells.
        others = np.stack([_on_pictures(as_maps(row, item.prompt)) for row in neutral[layer]])
        if "relative" in probes:
            map_ = _as_pictures(relative_attention(asked, others[-1]), one.maps)
            relative[layer] = _metrics(item, map_, one.visual_share)
        if "sinks" in probes:
            sinks = attention_sinks(others[:, None])[0]
            counts[layer] = int(sinks.sum())
            kept[layer] = _metrics(item, one.maps, one.visual_share, _as_pictures(sinks, one.maps))
    row: Json = {"relative": relative} if "relative" in probes else {}
    return row | ({"without_sinks": kept, "sinks": counts} if "sinks" in probes else {})


def _on_pictures(maps: Sequence[NDArray]) -> NDArray:
    """Maps of all pictures, one cell behind the other."""
    return np.concatenate([map_.ravel() for map_ in maps])


def _as_pictures(values: NDArray, maps: Sequence[NDArray]) -> list[NDArray]:
    """The other way, in the shapes of `maps`."""
    parts = np.split(values, np.cumsum([map_.size for map_ in maps])[:-1])
    return [part.reshape(map_.shape) for part, map_ in zip(parts, maps, strict=True)]


def _metrics(item: Seen, maps: Any, share: float, sinks: Sequence[NDArray] | None = None) -> Json | None:
    ignored = item.unseen if sinks is None else [a | b for a, b in zip(item.unseen, sinks, strict=True)]
    found = grounding(maps, item.boxes, item.sizes, share, ignored)
    return None if found is None else found.as_dict()


@dataclass(frozen=True)
class Masking:
    """The causal check of one item, in nats.

    tokens: visual tokens of the boxes. logp: log-probability of the whole answer. box: its change when the boxes' tokens
    are hidden; random: the mean change for `CONTROLS` random sets of as many tokens outside the boxes that show something.
    """

    tokens: int
    logp: float
    box: float
    random: float


@torch.no_grad()
def masking_check(model: nn.Module, items: Sequence[Seen], all_text: bool = False) -> list[Json | None]:
    """The causal check of every item; None where the boxes cover so much that no control fits beside them.

    Hidden means a score of minus infinity for the hidden keys in every layer and head, for the queries of the completion
    and of the prompt's last token, which predicts its first; with `all_text` for all text after the visual tokens. The
    controls depend on the item's id alone.
    """
    found: list[Json | None] = []
    for item in items:
        mask = tile_mask(item.prompt.tiles, item.boxes, item.sizes)
        among = showing(item.prompt.tiles)
        if 2 * mask.sum() > among.sum():
            found.append(None)
            continue
        seed = int.from_bytes(hashlib.blake2b(item.id.encode(), digest_size=8).digest(), "big")
        generator = np.random.default_rng(seed)
        hidden = [np.zeros_like(mask), mask, *(control_mask(mask, generator, among) for _ in range(CONTROLS))]
        first, rest = prompt_and_rest(item.prompt, None if all_text else len(item.prompt.input_ids) - 1)
        written = torch.cat([rest, item.completion.to(rest.device)])
        bias = torch.zeros(len(hidden), len(first.input_ids), device=rest.device)
        for row, tokens in zip(bias, hidden, strict=True):
            row[first.places[torch.from_numpy(tokens).to(row.device)]] = float("-inf")
        (output,) = forward_groups(model, [first], [[written] * len(hidden)], layers=(), look_bias=[bias])
        answer = slice(len(rest) + item.answer.start, len(rest) + item.answer.stop)
        logp = output.logps[:, answer].double().sum(dim=1).tolist()
        changes = [value - logp[0] for value in logp[1:]]
        found.append(asdict(Masking(int(mask.sum()), logp[0], changes[0], mean(changes[1:]))))
    return found


# -------------------------------------------------------------------------------------------------- over all items


def summarise(rows: Sequence[Mapping[str, Any]]) -> Json | None:
    """Means over the probed items' rows, as `summary.json` holds them; None if there are none."""
    rows = [row for row in rows if row]
    if not rows:
        return None
    result: Json = {"n": len(rows)}
    for name in ("relative", "without_sinks"):
        if name in rows[0]:
            result[name] = [_mean([row[name][i] for row in rows]) for i in range(len(rows[0][name]))]
    if "sinks" in rows[0]:
        result["sinks"] = np.mean([row["sinks"] for row in rows], axis=0).tolist()
    if "heads" in rows[0]:
        layers = rows[0]["heads"]
        result["heads"] = [
            [_mean([row["heads"][i][h] for row in rows]) for h in range(len(layers[i]))] for i in range(len(layers))
        ]
    for name in ("masking", "masking-text"):
        checked = [row[name] for row in rows if row.get(name) is not None]
        if checked:
            result[name] = _mean_masking(checked)
    return result


def _mean(items: Sequence[Json | None]) -> Json | None:
    found = [None if item is None else Grounding.from_dict(item) for item in items]
    average = mean_grounding(found).mean
    return None if average is None else average.as_dict()


def _mean_masking(items: Sequence[Json]) -> Json:
    """Means, and the paired difference of box and random with its 95 % interval: below 0, the box is evidence."""
    differences = [item["box"] - item["random"] for item in items]
    interval = mean_interval(differences)
    means = {name: mean(item[name] for item in items) for name in ("logp", "box", "random")}
    return {"n": len(items), **means, "difference": mean(differences), "ci": [interval.low, interval.high]}
