"""The head sweep and the causal check, if an evaluation ran these probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ral.report.artefacts import number
from ral.report.experiment import Arm
from ral.report.gallery import answered

#: Shades of a cell.
SHADES = 10


@dataclass(frozen=True)
class HeadMap:
    """The mass in the box of every head of one arm: `cells` `[layer][head]` as (shade, value), None where not measured;
    `best` are (layer, head, value) of the three heads that look most at the box."""

    arm: int
    label: str
    cells: list[list[tuple[int, float] | None]]
    best: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Hidden:
    """The cost of hiding the true box from the attention, in nats of log-probability, against hiding as many
    random visual tokens: means over `n` items and the paired `difference` with its 95 % `interval`."""

    arm: int
    label: str
    n: int
    box: float
    random: float
    difference: float
    interval: tuple[float, float]


def head_maps(arms: Sequence[Arm], task: str) -> list[HeadMap]:
    """The head sweeps of the arms, all on one scale."""
    found = {index: (arm.label, _masses(probes)) for index, arm, probes in _probes(arms, task) if "heads" in probes}
    peak = max((value for _, grid in found.values() for row in grid for value in row if value is not None), default=0.0)
    maps = []
    for index, (label, grid) in found.items():
        cells = [
            [None if value is None else (min(int(SHADES * value / (peak or 1.0)), SHADES - 1), value) for value in row]
            for row in grid
        ]
        ranked = sorted(
            (
                (layer, head, value)
                for layer, row in enumerate(grid)
                for head, value in enumerate(row)
                if value is not None
            ),
            key=lambda entry: -entry[2],
        )
        maps.append(HeadMap(index, label, cells, ranked[:3]))
    return maps


def hidden(arms: Sequence[Arm], task: str) -> list[Hidden]:
    """The causal checks of the arms."""
    checks = []
    for index, arm, probes in _probes(arms, task):
        check = probes.get("masking")
        check = check if isinstance(check, dict) else {}
        ends = ends if isinstance(ends := check.get("ci"), list) else []
        values = [number(value) for value in (*(check.get(key) for key in ("n", "box", "random", "difference")), *ends)]
        if len(values) == 6 and None not in values:
            n, box, random, difference, low, high = (value for value in values if value is not None)
            checks.append(Hidden(index, arm.label, int(n), box, random, difference, (low, high)))
    return checks


def _probes(arms: Sequence[Arm], task: str) -> list[tuple[int, Arm, dict[str, Any]]]:
    found = [(index, arm, evaluation.summary.get("probes")) for index, arm, evaluation in answered(arms, task)]
    return [(index, arm, probes) for index, arm, probes in found if isinstance(probes, dict)]


def _masses(probes: dict[str, Any]) -> list[list[float | None]]:
    layers = probes["heads"] if isinstance(probes["heads"], list) else []
    return [
        [number(head.get("mass")) if isinstance(head, dict) else None for head in heads]
        for heads in layers if isinstance(heads, list)
    ]  # fmt: skip
