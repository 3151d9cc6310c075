"""The table "who is told what": what a method knows, what it gains, and what its controls say; ours beside the published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ral.statistics import seed_interval

#: A study's table (`experiments.results.Table`) by name; None where it has no results yet.
Tables = Callable[[str], Any]
#: Time of an arm's update over GRPO's, by study and arm (`experiments.costs`).
Costs = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Ours:
    """One arm of one study: what it is told, GRPO with more updates (None: none was run), and its placebo."""

    told: str
    study: str
    arm: str
    longer: str | None = None
    placebo: str | None = None


@dataclass(frozen=True)
class Published:
    """A figure of a paper: gain over GRPO or DAPO in points, and what was said of controls."""

    told: str
    method: str
    where: str
    gain: str
    placebo: str = ""


OURS = (
    Ours("nothing", "rings", "old", "grpo-long"),
    Ours("nothing", "rings", "explore", "grpo-long", "explore-bias"),
    Ours("nothing", "rings", "credit", "grpo-long", "credit-shuffled"),
    Ours("nothing", "shortcut-word-97", "old", "grpo-long"),
    Ours("nothing", "shortcut-word-97", "papo", "grpo-long"),
    Ours("nothing", "shortcut-word-97", "vppo", "grpo-long"),
    Ours("nothing", "shortcut-word-97", "at-rl", "grpo-long"),
    Ours("own words", "own-words", "own-words", None, "own-words-centre"),
    Ours("own words, if rewarded", "own-words", "own-words-rewarded"),
    Ours("what the answer needs (masking)", "shortcut-word-97", "evidence-masking", "grpo-long"),
    Ours("boxes", "rings", "evidence", "grpo-long", "evidence-shuffled"),
    Ours("boxes", "zero", "evidence", "grpo-long"),
    Ours("boxes", "shortcut-word-97", "evidence", "grpo-long", "evidence-centre"),
    Ours("boxes", "shortcut-word-97", "evidence", "grpo-long", "evidence-rolled"),
    Ours("boxes", "shortcut-word-97", "evidence", "grpo-long", "evidence-random"),
    Ours("boxes", "shortcut-word-97", "evidence", "grpo-long", "evidence-shuffled"),
    Ours("boxes", "shortcut-word-97", "ease", "grpo-long", "ease-centre"),
    Ours("boxes", "shortcut-word-97", "ease", "grpo-long", "ease-random"),
    Ours("boxes (spans of a text)", "text", "evidence", None, "evidence-rolled"),
    Ours("a teacher", "distill", "attention"),
    Ours("a teacher", "distill-zero", "attention"),
    Ours("a teacher", "shortcut-word-97", "taught", "grpo-long"),
)
PUBLISHED = (
    Published("nothing", "RAL `old` (2602.04884)", "V*, Qwen2.5-VL-7B", "+4.7 to GRPO"),
    Published("nothing", "PAPO (2507.06448)", "mean of eight, Qwen2.5-VL", "+4.4 to +17.5 %"),
    Published("own words", "boxes of the rollout (2610.05023)", "mean of 25, Qwen3-VL-8B, one run", "+0.8 to GRPO"),
    Published("boxes", "EASE (2605.30912)", "Qwen2.5-VL-7B, Qwen3-VL", "+2.5 to +3.1 to DAPO"),
    Published(
        "boxes", "EASE in 2610.05023", "mean of 25, Qwen3-VL-8B, one run", "−0.6 to GRPO", "centre box: +0.5 to EASE"
    ),
)


def told_table(table: Tables, costs: Costs) -> str:
    """Markdown; arms of studies without results yet are left out."""
    lines = [
        "| told | method | where | gain to GRPO, equal updates | cost of an update | gain, equal cost | gain over placebo | mass on the start's "
        "words, to GRPO |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in OURS:
        found = table(row.study)
        if found is None or row.arm not in found.arms:
            continue
        study = found.study
        base = study.baseline if "grpo" not in study.arms else "grpo"
        cost = costs.get(row.study, {}).get(row.arm)
        cells = [
            row.told,
            study.arms[row.arm].label,
            study.title,
            _points(found.difference(row.arm, base)),
            "" if cost is None else f"×{cost:.2f}",
            ""
            if row.longer is None or cost is None
            else _points(at_equal_cost(found, row.arm, base, row.longer, cost)),
            "" if row.placebo is None else f"{_points(found.difference(row.arm, row.placebo))} ({row.placebo})",
            _fixed(found, row.arm, base),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for one in PUBLISHED:
        cells = [one.told, one.method, one.where, f"{one.gain} (published)", "", "", one.placebo, ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def at_equal_cost(table: Any, arm: str, base: str, longer: str, cost: float) -> list[float]:
    """`[seeds]` of an arm less GRPO with the updates that it makes in the same time, `cost` times the arm's.

    GRPO's accuracy at so many updates is taken on the line between its two lengths; outside of them, the nearer one counts.
    """
    steps, more = table.study.common["max_steps"], table.study.arms[longer].changes["max_steps"]
    share = min(max((cost - 1) * steps / (more - steps), 0.0), 1.0)
    found = {}
    for other in (base, longer):
        found[other] = dict(zip(table.common(arm, other), table.difference(arm, other), strict=True))
    both = sorted(found[base].keys() & found[longer].keys())
    return [(1 - share) * found[base][seed] + share * found[longer][seed] for seed in both]


def _points(differences: Sequence[float], digits: int = 1) -> str:
    """A mean difference with its interval and number of seeds; of one seed, the difference alone."""
    if not len(differences):
        return ""
    if len(differences) == 1:
        return f"{differences[0]:+.{digits}f} (one seed)"
    return f"{seed_interval(differences):+.{digits}f} ({len(differences)})"


def _fixed(table: Any, arm: str, base: str) -> str:
    seeds = [
        seed for seed in table.common(arm, base)
        if None not in (table.cells[arm, seed].fixed_mass, table.cells[base, seed].fixed_mass)
    ]  # fmt: skip
    return _points([table.cells[arm, seed].fixed_mass - table.cells[base, seed].fixed_mass for seed in seeds], 3)
