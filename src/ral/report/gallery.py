"""The held-out images on the page, with each arm's answer and attention."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ral.evaluate.items import Item
from ral.report.artefacts import Evaluation, number
from ral.report.differences import start_index
from ral.report.experiment import Arm
from ral.report.heatmap import Tile, shares, tile
from ral.report.templating import percent

#: What became of an item, in the order in which a reader asks.
OUTCOMES = {
    "fixed": "Fixed by training",
    "broken": "Broken by training",
    "right": "Right throughout",
    "wrong": "Wrong throughout",
}


@dataclass(frozen=True)
class ArmAnswer:
    """One arm's answer to one item and where it looked; `tile` is None where neither image nor map was kept; `inside`
    says whether the most attended spot is known to lie in the true box."""

    arm: int
    label: str
    completion: str
    prediction: str | None
    correct: float
    truncated: bool
    tile: Tile | None
    inside: bool
    facts: list[str]
    missing: str | None


@dataclass(frozen=True)
class Exhibit:
    """One held-out item with the look of every arm, in the order of the arms. `photo` is the shared image; of a video it is
    a sheet of frames, and `frames` says at what seconds."""

    id: str
    question: str
    solution: str
    outcome: str
    photo: str | None
    frames: str
    looks: list[ArmAnswer]


@dataclass(frozen=True)
class Gallery:
    """The chosen exhibits; `outcomes` counts the outcome over *all* items, as the choice is not representative."""

    exhibits: list[Exhibit]
    outcomes: dict[str, int]
    candidates: int


def build_gallery(arms: Sequence[Arm], task: str, count: int = 12) -> Gallery:
    """Up to `count` items of `task` that kept an image or a map, taken in turn from each outcome. Of an arm with several
    runs the first is shown."""
    scored = answered(arms, task)
    outcome = outcomes(arms, task)
    shown = [key for key in outcome if any(_has_picture(evaluation.items[key]) for _, _, evaluation in scored)]
    chosen = _in_turn([[key for key in shown if outcome[key] == name] for name in OUTCOMES], count)
    counts = Counter(outcome.values())
    return Gallery(
        exhibits=[_exhibit(key, outcome[key], scored) for key in chosen],
        outcomes={name: counts[name] for name in OUTCOMES},
        candidates=len(shown),
    )


#: An arm's number, the arm, and its first evaluation.
AnsweredArm = tuple[int, Arm, Evaluation]


def answered(arms: Sequence[Arm], task: str) -> list[AnsweredArm]:
    """The arms that were evaluated on `task`, each with the evaluation of its first run that was."""
    return [(index, arm, runs[0].evaluations[task]) for index, arm in enumerate(arms) if (runs := arm.evaluated(task))]


def outcomes(arms: Sequence[Arm], task: str) -> dict[str, str]:
    """The outcome of every item that all evaluated arms answered, by id."""
    scored, start = answered(arms, task), start_index(arms)
    common = (
        [key for key in scored[0][2].items if all(key in evaluation.items for *_, evaluation in scored)]
        if scored
        else []
    )
    return {
        key: _outcome([(index == start, evaluation.items[key]) for index, _, evaluation in scored]) for key in common
    }


def _outcome(items: list[tuple[bool, Item]]) -> str:
    """The outcome of an item, from (is this the start?, item) of each arm. Without a start, only right and wrong exist."""
    before = [item.right for is_start, item in items if is_start]
    after = [item.right for is_start, item in items if not is_start]
    if before and after and not before[0] and any(after):
        return "fixed"
    if before and after and before[0] and not all(after):
        return "broken"
    return "right" if all(before + after) else "wrong"


def _in_turn(groups: list[list[str]], count: int) -> list[str]:
    """`count` keys, one from each group in turn while it lasts, handed back group by group."""
    take = [0] * len(groups)
    while sum(take) < count and any(taken < len(group) for taken, group in zip(take, groups, strict=True)):
        for index, group in enumerate(groups):
            if take[index] < len(group) and sum(take) < count:
                take[index] += 1
    return [key for taken, group in zip(take, groups, strict=True) for key in group[:taken]]


def _exhibit(key: str, outcome: str, scored: list[AnsweredArm]) -> Exhibit:
    items = [(index, arm.label, evaluation, evaluation.items[key]) for index, arm, evaluation in scored]
    grids = [saved_map(item) for *_, item in items]
    # One scale for all arms of an image: what is brighter is attended to more, from tile to tile.
    peak = max((float(grid.max()) for grid in grids if grid is not None), default=None)
    image = next((found for _, _, evaluation, item in items if (found := saved_image(evaluation.folder, item))), None)
    looks = [
        answer_of(index, label, item, grid, image, peak)
        for (index, label, _, item), grid in zip(items, grids, strict=True)
    ]
    photo = next((look.tile.photo for look in looks if look.tile), None)
    first = items[0][3]
    return Exhibit(
        id=key, question=first.question, solution=first.solution, outcome=outcome,
        photo=photo, frames=frame_times(first), looks=[_without_photo(look) for look in looks],
    )  # fmt: skip


def answer_of(
    arm: int, label: str, item: Item, grid: np.ndarray | None, image: Image.Image | None, peak: float | None
) -> ArmAnswer:
    """Answer and attention of arm number `arm`; `peak` is the share of `grid` `[h, w]` that is drawn brightest."""
    seen = item.grounding
    facts = []
    if seen is not None:
        facts.append(f"{percent(number(seen.mass))} in box" + ("" if math.isnan(seen.lift) else f" ({seen.lift:.1f}×)"))
        facts.append("peak inside" if seen.pointing >= 0.5 else "peak outside")
    missing = "No attention map was kept." if item.map is None else None if grid is not None else (
        "The attention map could not be read.")  # fmt: skip
    return ArmAnswer(
        arm=arm,
        label=label,
        completion=item.completion,
        prediction=item.prediction,
        correct=item.correct,
        truncated=item.truncated,
        tile=tile(image, grid, _boxes(item), peak=peak, size=_size(item)) if image or grid is not None else None,
        inside=seen is not None and seen.pointing >= 0.5,
        facts=facts,
        missing=missing,
    )


def _without_photo(look: ArmAnswer) -> ArmAnswer:
    """The page embeds an exhibit's photo once, not once for each arm."""
    return look if look.tile is None else replace(look, tile=replace(look.tile, photo=None))


def _has_picture(item: Item) -> bool:
    return bool(item.image or item.map)


def saved_map(item: Item) -> np.ndarray | None:
    """The item's map `[h, w]` as shares; None if there is none or it is not a finite grid of its stated size."""
    saved = item.map
    if not isinstance(saved, dict):
        return None
    try:
        return shares(np.asarray(saved["values"], dtype=np.float64).reshape(saved["grid"]))
    except (KeyError, TypeError, ValueError):
        return None


def saved_image(folder: Path, item: Item) -> Image.Image | None:
    """The saved image; None if it is missing, is no image, or its name points outside of the evaluation folder."""
    name = item.image
    if not isinstance(name, str):
        return None
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            return None
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def _size(item: Item) -> tuple[float, float] | None:
    size = item.size
    if not isinstance(size, list) or len(size) != 2:
        return None
    width, height = number(size[0]), number(size[1])
    return (width, height) if width and height and width > 0 and height > 0 else None


def frame_times(item: Item) -> str:
    """At what seconds the frames of a video are that make up the image; nothing for an image."""
    saved = item.times
    times = [number(time) for time in saved] if isinstance(saved, list) else []
    return ", ".join(f"{time:.1f}" for time in times if time is not None)


def _boxes(item: Item) -> list[list[float]]:
    boxes = item.boxes
    return [box for box in boxes if isinstance(box, list)] if isinstance(boxes, list) else []
