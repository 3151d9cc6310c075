"""Placebo boxes, at places that say nothing of the answer, and spoiled ones: noisy, or missing in half of the records.

If training on placebo boxes gains as much as training on the true ones, the gain is not where the boxes are. A rectangle in the
centre of the image did better than EASE's boxes in an independent comparison (arXiv 2610.05023).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ral.data.boxes import Part, Size
from ral.data.record import Box

Control = Literal["none", "centre", "rolled", "random", "shuffled", "noisy", "half"]


@dataclass(frozen=True)
class Axis:
    """A box along one axis of its medium: its start and length, the free way (the axis without the box), and a draw from [0, 1)."""

    start: float
    length: float
    free: float
    drawn: float


def _centre(at: Axis) -> float:
    return at.free / 2


def _rolled(at: Axis) -> float:
    """Half of the free way on, and around: never nearer than that, and as often at every place as the true boxes are."""
    return (at.start + at.free / 2) % at.free


def _random(at: Axis) -> float:
    return at.drawn * at.free


def _noisy(at: Axis) -> float:
    """Up to its own length away, not beyond the edges."""
    return min(max(at.start + (2 * at.drawn - 1) * at.length, 0.0), at.free)


#: Where a box starts along one axis instead, by the name of the control.
MOVES: dict[str, Callable[[Axis], float]] = {
    "centre": _centre,
    "rolled": _rolled,
    "random": _random,
    "noisy": _noisy,
}


def moved(
    boxes: Sequence[Box], parts: Sequence[Part], cells: Sequence[tuple[float, float]], control: str, key: str
) -> list[Box]:
    """The boxes at other places of what is shown of their media, as `MOVES` says, to the nearest whole visual token.

    So a moved box lies on as many tokens as the true one, and a control differs from it in the place alone. A box of one place
    and size is moved alike in all pictures of a record, so that a video's box stays a box through time.

    Args:
        parts: what the model is shown of each medium, in its pixels. cells: (width, height) of a visual token of each, in the same.
        key: what the random places depend on, besides the box; the record's id.
    """
    found = []
    for box in boxes:
        (left, top, right, bottom), (across, down) = parts[box.medium], cells[box.medium]
        rng = random.Random(f"{key} {box.x0} {box.y0} {box.x1} {box.y1}")
        x0, x1 = _along(control, box.x0, box.x1, (left, right), across, rng.random())
        y0, y1 = _along(control, box.y0, box.y1, (top, bottom), down, rng.random())
        found.append(replace(box, x0=x0, y0=y0, x1=x1, y1=y1))
    return found


def _along(
    control: str, start: float, stop: float, ends: tuple[float, float], cell: float, drawn: float
) -> tuple[float, float]:
    """Start and end of a moved box along one axis; a box without a token's room to move stays, one outside as well."""
    low, high = ends
    start, stop = max(start, low), min(stop, high)
    length, free = stop - start, high - low - (stop - start)
    if not (length > 0 and free > 0):
        return start, stop
    wanted = round((MOVES[control](Axis(start - low, length, free, drawn)) - (start - low)) / cell)
    # Of whole tokens there may be room for one less; the slack is for rounding.
    least, most = -math.floor((start - low) / cell + 1e-9), math.floor((high - stop) / cell + 1e-9)
    move = cell * min(max(wanted, least), most)
    return start + move, stop + move


def keeps(key: str) -> bool:
    """Whether a record keeps its boxes under the control `half`; key: its id."""
    return random.Random(f"half {key}").random() < 0.5


def borrowed(boxes: Sequence[Box], sizes: Sequence[Size], own: Sequence[Size]) -> list[Box]:
    """Another record's boxes, on media of the `own` sizes: at the same places in shares of width and height (`shuffled`).

    Media are taken in turn where the other record has more of them.
    """
    found = []
    for box in boxes:
        medium = box.medium % len(own)
        across, down = (to / of for to, of in zip(own[medium], sizes[box.medium], strict=True))
        scaled = replace(box, x0=box.x0 * across, y0=box.y0 * down, x1=box.x1 * across, y1=box.y1 * down)
        found.append(replace(scaled, medium=medium))
    return list(dict.fromkeys(found))
