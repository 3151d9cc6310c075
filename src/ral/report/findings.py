"""Findings beside the differences: the table, a sentence on attention, and the caveats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ral.report.artefacts import count, number, numbers
from ral.report.differences import Difference, baseline_index, short_label, start_index
from ral.report.experiment import Arm, Experiment
from ral.report.templating import compact, percent
from ral.statistics import seed_interval


@dataclass(frozen=True)
class TableRow:
    """One line of the comparison table, means over the arm's `seeds` runs; `arm` is the index that gives the colour, None
    is "not measured". `interval` is over seeds, of a single run over items; `unparsed` and `truncated` count all runs."""

    arm: int
    label: str
    seeds: int
    n: int | None
    accuracy: float | None
    interval: tuple[float, float] | None
    unparsed: int | None
    truncated: int | None
    grounding: dict[str, float | None]
    seconds_per_step: float | None
    steps: int | None
    seconds: float | None
    versus_start: Difference | None = None


def table_of(experiment: Experiment, task: str | None, found: Sequence[Difference] = ()) -> list[TableRow]:
    """The comparison table for `task`, one row for each arm, in their order; `found` are the page's comparisons."""
    start = start_index(experiment.arms)
    table = []
    for index, arm in enumerate(experiment.arms):
        summaries = [run.evaluations[task].summary for run in arm.evaluated(task)] if task else []
        accuracies = [value for summary in summaries if (value := number(summary.get("accuracy"))) is not None]
        logged = [row for run in arm.runs for row in run.metrics]
        table.append(
            TableRow(
                arm=index,
                label=arm.label,
                seeds=len(accuracies),
                n=next((n for summary in summaries if (n := count(summary.get("n")))), None),
                accuracy=_mean(accuracies),
                interval=_over_seeds(accuracies) if len(accuracies) > 1 else interval(summaries[0]) if summaries else None,
                unparsed=_total(summary.get("unparsed") for summary in summaries),
                truncated=_total(summary.get("truncated") for summary in summaries),
                grounding=_grounding(summaries),
                seconds_per_step=statistics.median(costs) if (costs := numbers(logged, "step_seconds")) else None,
                steps=int(max(steps)) if (steps := numbers(logged, "step")) else None,
                seconds=_mean([run.seconds for run in arm.runs if run.seconds is not None]),
                versus_start=next((one for one in found if (one.arm, one.against) == (index, start)), None),
            )
        )  # fmt: skip
    return table


def _over_seeds(values: Sequence[float]) -> tuple[float, float]:
    found = seed_interval(values)
    return found.low, found.high


def _grounding(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean of every grounding metric over the runs that have it."""
    measured = [grounding for summary in summaries if isinstance(grounding := summary.get("grounding"), dict)]
    return {key: _mean(numbers(measured, key)) for key in dict.fromkeys(key for one in measured for key in one)}


def interval(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of a summary's accuracy, None unless both ends are numbers."""
    ends = summary.get("ci")
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return (low, high) if low is not None and high is not None else None


def looking(table: Sequence[TableRow]) -> str | None:
    """One sentence on the attention of the arms, None if no arm was measured."""
    found = [(short_label(row.label), row.grounding.get("pointing")) for row in table]
    parts = [f"{label} {percent(pointing)}" for label, pointing in found if pointing is not None]
    return "Most attended spot in the true box: " + ", ".join(parts) + "." if parts else None


def caveats(experiment: Experiment, task: str | None, table: list[TableRow]) -> list[str]:
    """Limits of the page as sentences, with this run's numbers if known."""
    sizes = sorted({row.n for row in table if row.n})
    notes = []
    if task is None:
        notes.append(
            "The curves describe rollouts on training prompts. Without an evaluation on held-out items nothing follows "
            "about what the model learned."
        )
    if any(row.seeds > 1 for row in table):
        notes.append(
            "Intervals of arms with several seeds are 95 % t-intervals over these seeds, all on the same held-out items; "
            "bands around curves are such intervals at every step, not for the curve as a whole."
        )
    if any(row.interval for row in table) and not all(row.seeds > 1 for row in table):
        items = f"{sizes[0]:,}" if len(sizes) == 1 else "the"
        notes.append(
            f"The 95 % intervals of single runs cover which {items} held-out items were drawn, not which random seed was "
            "used; runs that differ only in their seed commonly differ by several points, so a ranking of the arms needs "
            "many paired seeds."
        )
    if len(table) > 1:
        notes.append(
            "“Clear” means p < 0.05 after Holm’s adjustment for all comparisons on this page; “one of several looks”, that p "
            "is below 0.05 only without it; “within noise”, that zero is possible: these data cannot tell the two apart, which "
            "does not make them equal."
        )
    most_frequent = majority(experiment, task)
    if most_frequent is not None:
        notes.append(f"Always giving the most frequent answer scores {percent(most_frequent, 1)}.")
    for what, counts in (
        ("Without a readable answer", [(row.label, row.unparsed) for row in table]),
        ("Cut off at the length limit", [(row.label, row.truncated) for row in table]),
    ):
        if any(count for _, count in counts):
            listed = ", ".join(f"{label} {count:,}" for label, count in counts if count)
            notes.append(f"{what}: {listed}. These items stay in the denominator.")
    for index, arm in enumerate(experiment.arms):
        note = _attention_gradient(arm)
        if note and index != baseline_index(experiment.arms):
            notes.append(note)
    if any(row.grounding for row in table):
        notes.append(
            "A heat map shows the attention of one layer, averaged over its heads, from the position that predicts the "
            "answer. Attention in the box is no proof that the answer was read there: that needs an intervention, such "
            "as masking the box. Where a model looks also depends on the layer; see the sweep."
        )
    costs = {row.label: row.seconds_per_step for row in table if row.seconds_per_step}
    if len(costs) > 1:
        notes.append(
            "The arms are compared at equal numbers of updates, not at equal time: "
            + ", ".join(f"{label} {compact(cost)} s" for label, cost in costs.items())
            + " per step (median)."
        )
    return notes


def majority(experiment: Experiment, task: str | None) -> float | None:
    found = [run.evaluations[task] for arm in experiment.arms for run in arm.evaluated(task)] if task else []
    return number(found[0].summary.get("majority")) if found else None


def _attention_gradient(arm: Arm) -> str | None:
    ratios = numbers([row for run in arm.runs for row in run.metrics], "grad/attention_to_token")
    if not ratios:
        return None
    # The mean, as with the paper's anchor the first of every two inner updates has a gradient of exactly zero.
    mean = statistics.fmean(ratios)
    weak = " At this strength it can hardly steer training." if mean < 0.01 else ""
    size = "0 (it trained nothing)" if mean == 0 else f"{compact(mean)} × that of the token loss"
    return f"{arm.label}: the gradient of the attention term had a mean norm of {size}.{weak}"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _total(values: Iterable[object]) -> int | None:
    found = [whole for value in values if (whole := count(value)) is not None]
    return sum(found) if found else None
