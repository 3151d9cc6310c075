"""The slider over training steps: each arm's answers to a few held-out items, and where it looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ral.evaluate.items import Item
from ral.report.artefacts import Json, Run, number
from ral.report.experiment import Arm
from ral.report.gallery import ArmAnswer, answer_of, frame_times, saved_image, saved_map
from ral.report.heatmap import picture
from ral.runs.names import LOOKS

#: Steps of the slider at most, and items to choose from.
MAX_STEPS, MAX_ITEMS = 17, 6


@dataclass(frozen=True)
class Watched:
    """One item during training: the looks of the arms, in their order, for every step of the slider. `photo` is the image;
    of a video it is a sheet of frames, and `frames` says at what seconds."""

    question: str
    solution: str
    photo: str | None
    frames: str
    pixelated: bool
    size: tuple[float, float]
    looks: list[list[ArmAnswer]]


@dataclass(frozen=True)
class Film:
    """The slider: its steps, and what is to be seen at each."""

    steps: list[int]
    items: list[Watched]


def film(arms: Sequence[Arm]) -> Film:
    """The looks of every arm's first run. If an arm has no look at a step, its previous look is shown."""
    recorded = [(index, arm, _by_item(arm.first)) for index, arm in enumerate(arms) if arm.first.looks]
    steps = _spread(sorted({step for *_, items in recorded for rows in items.values() for step in rows}))
    common = [key for key in recorded[0][2] if all(key in items for *_, items in recorded)] if recorded else []
    seen = [key for key in common if any(saved_map(row) is not None for row in recorded[0][2][key].values())]
    chosen = sorted(seen, key=lambda key: _learned([items[key] for *_, items in recorded]), reverse=True)[:MAX_ITEMS]
    return Film(steps, [_watched(key, steps, recorded) for key in chosen])


def _by_item(run: Run) -> dict[str, dict[int, Item]]:
    """A run's looks by the item's id and the step."""
    items: dict[str, dict[int, Item]] = {}
    for item in run.looks:
        if item.step is not None:
            items.setdefault(item.id, {})[item.step] = item
    return items


def _spread(steps: list[int]) -> list[int]:
    """At most `MAX_STEPS` of them, evenly, with the first and the last."""
    if len(steps) <= MAX_STEPS:
        return steps
    return [steps[round(place)] for place in np.linspace(0, len(steps) - 1, MAX_STEPS)]


def _learned(arms: Sequence[dict[int, Item]]) -> tuple[int, float]:
    """In how many arms the item was wrong at first and right in the end, less those that went the other way; and how much
    attention moved into the box."""
    ends = [(rows[min(rows)], rows[max(rows)]) for rows in arms]
    return sum(last.right - first.right for first, last in ends), sum(_mass(b) - _mass(a) for a, b in ends)


def _mass(item: Item) -> float:
    return 0.0 if item.grounding is None else item.grounding.mass


def _watched(
    key: str, steps: Sequence[int], recorded: Sequence[tuple[int, Arm, dict[str, dict[int, Item]]]]
) -> Watched:
    maps = {(index, step): saved_map(row) for index, _, items in recorded for step, row in items[key].items()}
    peak = max((float(grid.max()) for grid in maps.values() if grid is not None), default=None)
    looks = []
    for step in steps:
        at_step = []
        for index, arm, items in recorded:
            at = max((taken for taken in items[key] if taken <= step), default=min(items[key]))
            at_step.append(answer_of(index, arm.label, items[key][at], maps[index, at], None, peak))
        looks.append(at_step)
    _, arm, items = recorded[0]
    first = items[key][min(items[key])]
    image = saved_image(arm.first.folder / LOOKS, first)
    tile = next((look.tile for at_step in looks for look in at_step if look.tile), None)
    return Watched(
        question=first.question,
        solution=first.solution,
        photo=None if image is None else picture(image),
        frames=frame_times(first),
        pixelated=image is not None and max(image.size) < 200,
        size=(tile.width, tile.height) if tile else (1.0, 1.0),
        looks=looks,
    )


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one prompt at one step of one arm's training, best first: completion, reward, advantage."""

    arm: int
    label: str
    question: str
    solution: str
    samples: list[Json]


def rollouts(arms: Sequence[Arm]) -> list[tuple[int, list[Rollouts]]]:
    """By step, evenly spread, the first group that every arm kept there, of the first run of each."""
    kept: dict[int, dict[int, list[Json]]] = {}
    for index, arm in enumerate(arms):
        for row in arm.first.samples:
            kept.setdefault(int(row["step"]), {}).setdefault(index, []).append(row)
    return [
        (step, [_group(index, arms[index].label, rows) for index, rows in kept[step].items()])
        for step in _spread(sorted(kept))
    ]


def _group(arm: int, label: str, rows: Sequence[Json]) -> Rollouts:
    samples = [
        {"completion": str(row.get("completion", "")), "reward": number(row.get("reward")),
         "advantage": number(row.get("advantage"))}
        for row in rows if row.get("id") == rows[0].get("id")
    ]  # fmt: skip
    samples.sort(key=lambda row: -np.inf if row["reward"] is None else row["reward"], reverse=True)
    return Rollouts(arm, label, str(rows[0].get("question", "")), str(rows[0].get("solution", "")), samples)
