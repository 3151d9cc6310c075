"""The page of results: `python -m experiments.results` writes experiments/results.md and its figures from the result files.

Over seeds, as in rliable (Agarwal et al., arXiv 2108.13264): interquartile means with bootstrap intervals, the probability
that a run of an arm beats one of the baseline. Differences are paired by seed, with Student's t interval. The detectable
effect is what a paired t-test at 5 % would find with 80 % power, given the spread that was seen.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.power import TTestPower

from experiments.common import RESULTS
from experiments.costs import read_costs
from experiments.hint_figure import draw_training
from experiments.hint_tables import hint_table, hints_table, watch_table
from experiments.smollm import evidence_heads
from experiments.studies import STUDIES
from experiments.study import result_file
from experiments.table import FIGURES, Table
from experiments.told import told_table
from ral.files import atomic_write_text
from ral.statistics import interquartile_mean_interval, probability_of_improvement, seed_interval

PAGE = RESULTS.parent / "results.md"
_HEAD = """# Does training the attention help?

Written by `python -m experiments.results` from the files in `experiments/results/`; do not edit. The endpoint of every study
was fixed before its runs: held-out accuracy of greedy answers at equal numbers of prompts, rollouts and updates. Where the model
looks comes second.

- *accuracy*: mean over seeds with Student's 95 % interval; *IQM*: interquartile mean with a stratified bootstrap interval.
- *difference*: to the first arm, paired by seed, with Student's 95 % interval. *detectable*: the smallest mean difference that a
  paired t-test at 5 % would find with 80 % power, given this spread and number of seeds. An interval that holds 0 beside a
  detectable effect of several points is no evidence of no effect.
- *P(better)*: probability that a run of the arm beats a run of the first one, with a bootstrap interval.
- *time*: training time against the first arm's, median over seeds of runs of one commit, which ran beside each other (empty where none
  did); the machine was shared, so only large differences mean anything.
- Looking is measured at the row that predicts the answer, in the trained layer.

One cell is repeated by the two commands that `python -m experiments.study STUDY --seeds N --arms ARM --show` prints; on a CPU, at
the commit that stands in the cell, it gives the same figures."""


_TOLD = """Points of accuracy, paired by seed, with 95 % intervals and the number of seeds. *Cost of an update*: its time over
GRPO's, measured in turn (`python -m experiments.costs`). *Equal cost*: to GRPO with as many updates as it makes in the same time, on the line
between its 160 and 220 updates, and at most the latter. *Placebo*: to the same method told something that says nothing of the answer. *Mass on the start's words*: of attention in
the box, on one fixed text. Published figures are what papers report, of other models and tasks; they were not measured here."""


_HINTS = """Right answers to questions whose hint is wrong, in per cent, and differences in points, paired by seed. How often a hint is right in
training decides whether it pays to look; one start for all shares of a hint."""


def detectable(differences: NDArray[np.float64]) -> float:
    """The smallest mean difference that a paired t-test at 5 % finds with 80 % power, for this spread and number."""
    effect = TTestPower().solve_power(nobs=len(differences), alpha=0.05, power=0.8, alternative="two-sided")
    return float(effect * differences.std(ddof=1))


def accuracy_table(table: Table) -> str:
    """Accuracy of every arm, and what it differs from the baseline by."""
    base = table.study.baseline
    lines = [
        "| arm | seeds | accuracy % | IQM % | difference | detectable | P(better) | time |",
        "|---|---|---|---|---|---|---|---|",
        f"| start | | {100 * table.start['accuracy']:.1f} | | | | | |",
    ]
    for arm in table.arms:
        values, label = table.values(arm), table.study.arms[arm].label
        cells = [str(len(values)), f"{seed_interval(values):.1f}", f"{interquartile_mean_interval(values):.1f}"]
        if len(values) == 1:
            cells[1:] = [f"{values[0]:.1f}", ""]
        difference = table.difference(arm, base)
        if arm == base or len(difference) < 2:
            cells += ["", "", "", ""]
        else:
            better = probability_of_improvement(table.values(base), values)
            cells += [f"{seed_interval(difference):+.1f}", f"{detectable(difference):.1f}", f"{better:.2f}"]
            cells.append(_time_ratio(table, arm))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary_table(table: Table, arms: Sequence[str]) -> str:
    """Accuracy and looking of a few arms, for a reader in a hurry."""
    base = table.study.baseline
    lines = ["| arm | accuracy % | difference | pointing game | mass in box |", "|---|---|---|---|---|"]
    start = table.start
    lines.append(f"| start | {100 * start['accuracy']:.1f} | | {start['pointing']:.2f} | {start['mass']:.2f} |")
    for arm in arms:
        difference = "" if arm == base else f"{seed_interval(table.difference(arm, base)):+.1f}"
        looking = " | ".join(f"{table.values(arm, name).mean():.2f}" for name in ("pointing", "mass"))
        label = table.study.arms[arm].label
        lines.append(f"| {label} | {seed_interval(table.values(arm)):.1f} | {difference} | {looking} |")
    return "\n".join(lines)


def looking_table(table: Table) -> str:
    """Where the row that predicts the answer looks."""
    figures, base = ("pointing", "mass", "visual_share"), table.study.baseline
    lines = [
        "| arm | pointing game | difference | mass in box | difference | visual share |",
        "|---|---|---|---|---|---|",
    ]
    start = [f"{table.start[name]:.2f}" for name in figures]
    lines.append(f"| start | {start[0]} | | {start[1]} | | {start[2]} |")
    for arm in table.arms:
        cells = []
        for name in figures:
            cells.append(f"{table.values(arm, name).mean():.3f}")
            if name != "visual_share":
                difference = table.difference(arm, base, name)
                cells.append("" if arm == base or len(difference) < 2 else f"{seed_interval(difference):+.3f}")
        lines.append(f"| {table.study.arms[arm].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def contrasts(table: Table, arms: Sequence[str]) -> str:
    """Arms against their controls, in a sentence each."""
    found = []
    for arm, control in table.study.contrasts:
        accuracy = table.difference(arm, control)
        if len(accuracy) > 1 and {arm, control} <= set(arms):
            labels, mass = table.study.arms, ""
            if table.start["mass"] is not None:
                mass = f"; mass in box {seed_interval(table.difference(arm, control, 'mass')):+.3f}"
            found.append(
                f"{labels[arm].label}, against {labels[control].label}: {seed_interval(accuracy):+.1f} points "
                f"({len(accuracy)} seeds, detectable {detectable(accuracy):.1f}){mass}."
            )
    return "\n\n".join(found)


def _time_ratio(table: Table, arm: str) -> str:
    """Median over seeds of the training time against the baseline's; runs of different commits may be of different machines."""
    base = table.study.baseline
    pairs = [(table.cells[arm, seed], table.cells[base, seed]) for seed in table.common(arm, base)]
    ratios = [own.seconds / other.seconds for own, other in pairs if own.commit == other.commit]
    return f"×{np.median(ratios):.2f}" if ratios else ""


def signal_table(table: Table) -> str:
    """How strong the attention term's gradient is beside the tokens' (λ included); empty where no arm has the term."""
    head = ["| arm | attention gradient / token gradient |", "|---|---|"]
    lines = []
    for arm in table.arms:
        signals = [s for s in (table.cells[arm, seed].signal for seed in table.seeds(arm)) if s is not None]
        if signals and max(signals) > 0:
            lines.append(f"| {table.study.arms[arm].label} | {np.mean(signals):.1e} |")
    return "\n".join(head + lines) if lines else ""


def draw(name: str, table: Table) -> Path:
    """Every seed's accuracy by arm, with the mean's interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = name  # the same file from the same figures
    plt.rcParams["font.family"] = "DejaVu Sans"
    height = 0.5 * len(table.arms) + 1.1
    figure, axes = plt.subplots(figsize=(7.5, height), constrained_layout=True)
    for y, arm in enumerate(table.arms):
        values = table.values(arm)
        interval = seed_interval(values)
        colour = "#0072b2" if arm == table.study.baseline else "#d55e00"
        axes.plot(values, np.full(len(values), y), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
        axes.plot([interval.low, interval.high], [y, y], "-", color=colour, linewidth=2)
        axes.plot(interval.value, y, "|", color=colour, markersize=16, markeredgewidth=2.5)
    axes.axvline(table.values(table.study.baseline).mean(), color="#0072b2", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(table.arms)), [table.study.arms[arm].label for arm in table.arms])
    axes.invert_yaxis()
    axes.set_xlabel("held-out accuracy %, one dot a seed, mean with 95 % interval")
    axes.set_title(table.study.title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    path = FIGURES / f"study-{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def section(name: str) -> str:
    table = Table(name)
    study, cells = table.study, list(table.cells.values())
    seeds = sorted({cell.seed for cell in cells})
    changes = ", ".join(f"`{key}: {value}`" for key, value in study.common.items())
    parts = [
        f"## {study.title}",
        study.note,
        f"`python -m experiments.study {name} --seeds {' '.join(map(str, seeds))} --arms {' '.join(table.arms)}` "
        f"({changes}; {study.held_out} held-out items; {cells[0].machine}; "
        f"[study/{name}.json](results/study/{name}.json)).",
        f"![{study.title}: accuracy by arm](../docs/assets/study-{name}.svg)",
        f"![{study.title}: over training](../docs/assets/study-{name}-training.svg)" if study.control_task else "",
        origins(table),
        accuracy_table(table),
        contrasts(table, table.arms),
        hint_table(table),
        watch_table(table),
        *([looking_table(table)] if table.start["pointing"] is not None else []),
        signal_table(table),
    ]
    return "\n\n".join(part for part in parts if part)


def origins(table: Table) -> str:
    """Which commits the cells are of, and when they ended; the result file says it of each cell."""
    cells = list(table.cells.values())
    commits = Counter(str(cell.commit)[:7] for cell in cells)
    ended = sorted(cell.finished for cell in cells if cell.finished)
    when = f"; ended {ended[0][:16]} to {ended[-1][:16]} UTC" if ended else ""
    unknown = len(cells) - len(ended)
    undated = f" ({unknown} cells are older than this record)" if unknown and ended else ""
    return f"Commits of the {len(cells)} cells: {', '.join(f'{name} ({n})' for name, n in commits.items())}{when}{undated}."


def real_model() -> str:
    """Attention of SmolLM2 on needles in prose (`experiments.smollm`); empty without results."""
    file = RESULTS / "smollm.json"
    if not file.exists():
        return ""
    found = json.loads(file.read_text(encoding="utf-8"))
    start = found["start"]
    sink, needle = np.array(start["sink"]), np.array(start["needle"])
    layers, heads = needle.shape
    best = [divmod(int(i), heads) for i in np.argsort(-needle, axis=None)[:5]]
    rows = [
        "| layer | head | on the first token | on the needle |",
        "|---|---|---|---|",
        *(
            f"| {layer} | mean of {heads} | {sink[layer].mean():.3f} | {needle[layer].mean():.3f} |"
            for layer in (10, 18, 20, layers - 1)
        ),
        *(f"| {layer} | {head} | {sink[layer, head]:.3f} | {needle[layer, head]:.3f} |" for layer, head in best),
    ]
    parts = [
        "## A real pretrained model: SmolLM2-135M-Instruct",
        f"Where the row that predicts the answer looks, on {start['records']} needles in prose (the Apache licence): shares of the whole row. A "
        f"needle has {start['needle_tokens']:.1%} of the tokens. {int((needle > 0.2).sum())} of {needle.size} heads give it more than a fifth of their "
        f"attention, and {(needle < start['needle_tokens']).mean():.0%} less than its share of the tokens. So a mean over the heads of the last layer, "
        "as in the paper, is a weak reading of where this model looks. "
        f"`{start['command']}`, commit {str(start['commit'])[:7]}, {start['machine']}, {start['finished']}.",
        "\n".join(rows),
    ]
    if found["arms"]:
        parts.append(_real_arms(found))
    return "\n\n".join(parts)


def _real_arms(found: dict[str, Any]) -> str:
    """What each arm's updates did: reward, strength of the term's gradient, and looks of the layers it could train, before and after."""
    layer, heads = evidence_heads(found["start"])
    lines = [
        "| arm | updates | reward, first and last five | attention gradient / token gradient | log-probability of the answer "
        f"| last layer's mean: first token, needle | layer {layer}'s mean: needle | its heads {', '.join(map(str, heads))}: needle |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def looking(measured: dict[str, Any]) -> list[str]:
        sink, needle = np.array(measured["sink"]), np.array(measured["needle"])
        last = f"{sink[-1].mean():.3f}, {needle[-1].mean():.3f}"
        return [
            f"{measured['answer_logp']:.2f}",
            last,
            f"{needle[layer].mean():.3f}",
            f"{needle[layer, heads].mean():.3f}",
        ]

    lines.append(f"| start | | | | {' | '.join(looking(found['start']))} |")
    for name, arm in found["arms"].items():
        first, last = (np.mean(part) for part in (arm["reward"][:5], arm["reward"][-5:]))
        ratio = f"{np.mean(arm['gradient_ratio']):.1e}" if any(arm["gradient_ratio"]) else ""
        cells = [name, str(arm["updates"]), f"{first:.2f}, {last:.2f}", ratio, *looking(arm["after"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in known():
        draw(name, Table(name))
        if STUDIES[name].control_task:
            draw_training(name, Table(name))
    atomic_write_text(PAGE, page(known()))


def known() -> list[str]:
    """The studies that have a result file."""
    return [name for name in STUDIES if result_file(name).exists()]


def page(names: list[str]) -> str:
    told = f"## Who is told what\n\n{_TOLD}\n\n{told_table(lambda name: Table(name) if name in names else None, read_costs())}"
    hints = f"## Which hints, and how often they are right\n\n{_HINTS}\n\n{hints_table([Table(name) for name in names if STUDIES[name].control_task])}"
    return "\n\n".join([_HEAD, told, hints, *(section(name) for name in names), *filter(None, [real_model()])]) + "\n"


if __name__ == "__main__":
    main()
