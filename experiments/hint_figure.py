"""Draws docs/assets/study-NAME-training.svg of a study with hints.

Three pictures over training, of the arms of the primary comparison: what the reward sees, what it does not see (answers where
the hint is wrong), and whether the answer rests on the box. Lines are means over seeds, bands Student's 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies import PRIMARY_SHORTCUT
from experiments.table import FIGURES, Table
from ral.statistics import seed_interval

#: Of the arms in `PRIMARY_SHORTCUT`, in their order: Okabe and Ito's colours, which differ for everybody.
COLOURS = dict(zip(PRIMARY_SHORTCUT, ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7"), strict=True))
#: Of a look in `Cell.watch`: the title of its picture and its unit.
LOOKS = {1: ("Right where the hint is wrong", 100.0, "%, greedy"), 5: ("What hiding the box costs", -1.0, "nats")}


def draw_training(name: str, table: Table) -> Path:
    """The figure of one study."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = name  # the same file from the same figures
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.6), layout="constrained")
    for arm in (arm for arm in COLOURS if arm in table.arms):
        cells = [table.cells[arm, seed] for seed in table.seeds(arm)]
        blocks = (np.arange(len(cells[0].curve)) + 0.5) * table.study.common["max_steps"] / len(cells[0].curve)
        _line(panels[0], blocks, [[100 * reward for reward in cell.curve] for cell in cells], arm, table)
        for panel, (place, (_, scale, _)) in zip(panels[1:], LOOKS.items(), strict=True):
            steps = [look[0] for look in cells[0].watch]
            _line(panel, steps, [[scale * (look[place] or 0.0) for look in cell.watch] for cell in cells], arm, table)
    panels[0].set_ylim(75, 100)
    panels[1].set_ylim(0, 100)
    titles = [("Training reward", "% of the most"), *((title, unit) for title, _, unit in LOOKS.values())]
    for panel, (title, unit) in zip(panels, titles, strict=True):
        panel.set_title(f"{title} ({unit})", loc="left", fontsize=10)
        panel.set_xlabel("updates", fontsize=9)
        panel.tick_params(labelsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", linewidth=0.4, alpha=0.5)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    path = FIGURES / f"study-{name}-training.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _line(panel: Any, steps: Any, curves: Sequence[Sequence[float]], arm: str, table: Table) -> None:
    """One arm's mean over seeds, with its interval where there are at least two."""
    values = np.array(curves)
    label = f"{table.study.arms[arm].label} (n = {len(values)})"
    panel.plot(steps, values.mean(axis=0), "-", color=COLOURS[arm], linewidth=2, label=label)
    if len(values) > 1:
        bands = [seed_interval(values[:, i]) for i in range(values.shape[1])]
        low, high = [band.low for band in bands], [band.high for band in bands]
        panel.fill_between(steps, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)
