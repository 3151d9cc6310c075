"""Localisation metrics: whether one attention row over visual tokens rests on the evidence.

An attention *map* is a grid [h, w] of non-negative weights, one per visual token of an image or of a temporal patch of
a video; an item with several images or patches has a list of them, ranked and normalised together. Boxes are in pixels
of their medium. The map need not be square and need not sum to one.

The definitions are those of Quantus' `metrics/localisation` (Hedström et al., JMLR 24, 2023) but for one thing, stated
at `grounding`: ties for the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ral.data.boxes import Size, box_masks
from ral.data.record import Box

Maps = ArrayLike | Sequence[ArrayLike]

#: A neutral map is never taken to be smaller than this share of its own mean, see `relative_attention`.
NEUTRAL_FLOOR = 1e-3


@dataclass(frozen=True)
class Grounding:
    """Agreement of one attention row with the boxes of its item; every field is higher if the row looks at them.

    pointing: share of the most attended tokens that lie in a box (0 or 1 unless several tie for the maximum).
    mass: Σ_box a / Σ a, in [0, 1].
    lift: mass over its value for uniform attention, |box| / N in tokens; 1 is chance.
    auc: probability that a token in a box is attended more than one outside, ties half; NaN where no token is outside.
    visual_share: attention on visual tokens before renormalising to them, in [0, 1].
    """

    pointing: float
    mass: float
    lift: float
    auc: float
    visual_share: float

    def as_dict(self) -> dict[str, float | None]:
        """The fields by name, with None for what is undefined, as JSON has no NaN."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, float | None]) -> Grounding:
        """The inverse of `as_dict`."""
        return cls(**{name: math.nan if value is None else value for name, value in values.items()})


@dataclass(frozen=True)
class MeanGrounding:
    """`mean` over the `n` items that have boxes (None when there are none); `without_boxes` counts the others."""

    mean: Grounding | None
    n: int
    without_boxes: int


def item_mask(maps: Maps, boxes: Iterable[Box], sizes: Size | Sequence[Size]) -> list[NDArray[np.bool_]]:
    """`box_masks` on the grids of `maps`. Raises `DataError`."""
    media = [(width, height) for width, height in np.reshape(np.asarray(sizes), (-1, 2))]
    return box_masks([grid.shape for grid in _grids(maps)], boxes, media)


def grounding(
    maps: Maps,
    boxes: Iterable[Box],
    sizes: Size | Sequence[Size],
    visual_share: float,
    ignore: Maps | None = None,
) -> Grounding | None:
    """Metrics of one attention row; None if the item has no boxes (or all their tokens are ignored).

    maps: [h, w], or one such grid per image or temporal patch. sizes: (width, height) in pixels of each medium.
    visual_share: the row's weight on visual tokens before renormalising to them. ignore: tokens to leave out of
    attention and boxes alike, e.g. `attention_sinks`, in the shape of `maps`.

    Where several tokens tie for the maximum, `pointing` is the share of them inside, so that uniform attention scores
    chance; Quantus' PointingGame counts a full hit if any is inside. Raises `ValueError` on a map that is negative, not
    finite or without mass, `DataError` on boxes that do not fit.
    """
    grids = _grids(maps)
    attention, inside = _flat(grids), _flat(item_mask(grids, boxes, sizes))
    if ignore is not None:
        kept = ~_flat(_grids(ignore)).astype(bool)
        if kept.shape != attention.shape:
            raise ValueError(f"`ignore` marks {kept.size} tokens, the maps have {attention.size}")
        attention, inside = attention[kept], inside[kept]
    if not inside.any():
        return None
    total = attention.sum()
    if not (np.isfinite(total) and attention.min() >= 0 and total > 0):
        raise ValueError(
            f"an attention map must be finite, non-negative and have mass; got sum {total}, minimum {attention.min()}"
        )
    mass = float(attention[inside].sum() / total)
    return Grounding(
        pointing=float(inside[attention == attention.max()].mean()),
        mass=mass,
        lift=float(mass / inside.mean()),
        auc=_auc(attention, inside),
        visual_share=float(visual_share),
    )


def mean_grounding(items: Iterable[Grounding | None]) -> MeanGrounding:
    """Mean of each metric over the items that have one; a NaN (an AUC without an outside) is left out of its mean."""
    items = list(items)
    scored = [item for item in items if item is not None]
    if not scored:
        return MeanGrounding(None, 0, len(items))
    means = {}
    for field in fields(Grounding):
        values = np.array([getattr(item, field.name) for item in scored])
        defined = values[~np.isnan(values)]
        means[field.name] = float(defined.mean()) if defined.size else math.nan
    return MeanGrounding(Grounding(**means), len(scored), len(items) - len(scored))


def relative_attention(map_: ArrayLike, neutral: ArrayLike) -> NDArray[np.float64]:
    """The map [h, w] divided by that for a neutral question about the same image, renormalised to sum 1.

    The quotient cancels what is attended whatever is asked ("Write a general description of the image" is the usual
    neutral question; arXiv 2502.17422). Neutral weights below `NEUTRAL_FLOOR` of their mean are raised to it: a token
    nobody looks at must not win by division by nothing.
    """
    asked, plain = np.asarray(map_, dtype=np.float64), np.asarray(neutral, dtype=np.float64)
    if asked.shape != plain.shape:
        raise ValueError(f"the map is {asked.shape} but the neutral map {plain.shape}: same image, same pixels needed")
    quotient = asked / np.maximum(plain, NEUTRAL_FLOOR * plain.mean())
    return quotient / quotient.sum()


def attention_sinks(queries: ArrayLike, factor: float = 10.0, share: float = 0.75) -> NDArray[np.bool_]:
    """Visual tokens [h, w] that draw attention whatever is asked, from maps [n, h, w] of n unrelated queries.

    Rule: attended more than `factor` times the median visual token of the same query, in at least `share` of the
    queries. Kang et al. (arXiv 2503.03321) find the same tokens from massive activations in fixed hidden dimensions,
    and show that they are irrelevant to the text and can be removed without harm; this is the criterion that needs
    attention only. One map, for a neutral prompt, is allowed; a sink then means no more than an outlier.
    """
    maps = np.asarray(queries, dtype=np.float64)
    if maps.ndim != 3:
        raise ValueError(f"expected maps [queries, h, w], got shape {maps.shape}")
    outlying = maps > factor * np.median(maps, axis=(1, 2), keepdims=True)
    return outlying.mean(axis=0) >= share


def control_mask(mask: ArrayLike, generator: np.random.Generator, among: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Draw as many random tokens outside `mask` as it has: the control for the causal check.

    Hiding the box's tokens says something about evidence only against hiding equally many others. `among`: the tokens to draw
    from, in the shape of `mask`; None: all. Raises `ValueError` when the outside is smaller than the box.
    """
    mask = np.asarray(mask, dtype=bool)
    free = ~mask if among is None else ~mask & np.asarray(among, dtype=bool)
    outside, n = np.flatnonzero(free), int(mask.sum())
    if len(outside) < n:
        raise ValueError(f"the boxes cover {n} of {mask.size} tokens: no control of the same size fits outside them")
    control = np.zeros(mask.size, dtype=bool)
    control[generator.choice(outside, size=n, replace=False)] = True
    return control.reshape(mask.shape)


def _auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Mann-Whitney form of the area under the ROC curve; equal to the trapezoid of the curve, ties included."""
    inside, outside = int(positive.sum()), int((~positive).sum())
    if not outside:
        return math.nan
    return float((rankdata(scores)[positive].sum() - inside * (inside + 1) / 2) / (inside * outside))


def _grids(maps: Maps) -> list[NDArray]:
    """`maps` as a list of 2-D arrays."""
    grids = [np.asarray(grid) for grid in ([maps] if np.ndim(maps[0]) == 1 else maps)]  # type: ignore[index,arg-type,union-attr]
    for grid in grids:
        if grid.ndim != 2 or not grid.size:
            raise ValueError(f"an attention map is a grid [h, w] of visual tokens, got shape {grid.shape}")
    return [grid if grid.dtype == bool else grid.astype(np.float64) for grid in grids]


def _flat(grids: Sequence[NDArray]) -> NDArray:
    return np.concatenate([grid.ravel() for grid in grids])
