"""Tables of studies with hints: which way the arms answer, and how that goes over training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.table import Table
from ral.statistics import seed_interval

#: Distance in mean reward, in the last eighth of the runs, within which arms are compared at equal training reward.
EQUAL_REWARD = 0.02


def hints_table(tables: Sequence[Table]) -> str:
    """One line a study: what reward alone makes of its hint, and what the primary arms add."""
    lines = [
        "| hint | start | GRPO | training reward, last eighth | old − GRPO | evidence − GRPO | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for table in tables:
        gains = [table.difference(arm, "grpo") for arm in ("old", "evidence")]
        figures = [
            table.study.title,
            f"{100 * table.start['accuracy']:.1f}",
            f"{table.values('grpo').mean():.1f}",
            f"{_last_reward(table, 'grpo'):.3f}",
            *(f"{seed_interval(gain):+.1f}" if len(gain) > 1 else "" for gain in gains),
            str(len(table.seeds("grpo"))),
        ]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def hint_table(table: Table) -> str:
    """Of a study with hints: which way arms answer, at which training reward, and what their looks cause; else empty."""
    if not table.study.control_task:
        return ""
    base = table.study.baseline
    lines = [
        "| arm | right on wrong hints % | follows the hint % | right on right hints % | training reward, last eighth | hiding the box, nats | "
        "mass in box on the start's words | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    last = _last_reward(table, base)
    for arm in table.arms:
        cells = [table.cells[arm, seed] for seed in table.seeds(arm)]
        reward = _last_reward(table, arm)
        unequal = " (not at equal reward)" if abs(reward - last) > EQUAL_REWARD else ""
        figures = [
            f"{100 * np.mean([cell.accuracy for cell in cells]):.1f}",
            f"{100 * _mean([cell.followed for cell in cells]):.1f}",
            f"{100 * _mean([cell.control for cell in cells]):.1f}",
            f"{reward:.3f}{unequal}",
            f"{_mean([cell.causal for cell in cells]):+.2f}",
            f"{_mean([cell.fixed_mass for cell in cells]):.3f}",
            f"{_mean([cell.tokens for cell in cells]):.1f}",
        ]
        lines.append(f"| {table.study.arms[arm].label} | {' | '.join(figures)} |")
    return "\n".join(lines).replace("nan", "")


def watch_table(table: Table) -> str:
    """Over training, the mean over seeds: right on wrong hints, mass in box, and what hiding the box costs; empty without looks."""
    cells = [cell for cell in table.cells.values() if cell.watch]
    steps = sorted({look[0] for cell in cells for look in cell.watch})
    if not steps:
        return ""
    head = "| arm | " + " | ".join(f"after {step:.0f}" for step in steps) + " |"
    lines = [head, "|---|" + "---|" * len(steps)]
    for arm in table.arms:
        shown = []
        for step in steps:
            looks = [look for cell in cells if cell.arm == arm for look in cell.watch if look[0] == step]
            right, mass, causal = (_mean([look[i] for look in looks]) for i in (1, 2, 5))
            shown.append(f"{100 * right:.0f} %, {mass:.2f}, {causal:+.1f}" if looks else "")
        lines.append(f"| {table.study.arms[arm].label} | {' | '.join(shown)} |")
    intro = "Over training, on 64 held-out items: right on wrong hints, mass in box, and what hiding the box changes the answer's log-probability by."
    return intro + "\n\n" + "\n".join(lines)


def _last_reward(table: Table, arm: str) -> float:
    """Mean training reward in the last eighth of an arm's runs."""
    return float(np.mean([table.cells[arm, seed].curve[-1] for seed in table.seeds(arm)]))


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
