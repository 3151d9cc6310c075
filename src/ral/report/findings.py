"""What the numbers allow to be said, and in which words: scores, paired differences, the headline and the caveats."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ral.report.artefacts import Arm, Evaluation, Experiment, number
from ral.report.templating import clip, compact, percent

#: Fewer paired items than this do not carry a normal approximation.
MIN_PAIRS = 20


@dataclass(frozen=True)
class Row:
    """One line of the comparison table; `arm` is the index that gives the colour, None is "not measured"."""

    arm: int
    label: str
    n: int | None
    accuracy: float | None
    interval: tuple[float, float] | None
    unparsed: int | None
    truncated: int | None
    grounding: dict[str, float | None]
    seconds_per_step: float | None
    steps: int | None
    seconds: float | None
    versus_start: Comparison | None = None


@dataclass(frozen=True)
class Comparison:
    """Accuracy of `arm` minus that of `against`. `interval` is the 95 % interval over items of the paired difference,
    None where the two were not scored on the same items; `verdict` is what a reader may conclude."""

    arm: str
    against: str
    difference: float
    interval: tuple[float, float] | None
    fixed: int | None
    broken: int | None
    clear: bool
    verdict: str


def start_index(arms: list[Arm]) -> int | None:
    """The arm that was not trained; None when there is none, as in a single run."""
    return next((index for index, arm in enumerate(arms) if arm.name == "start"), None)


def baseline_index(arms: list[Arm]) -> int | None:
    """The arm that the attention arms are to beat: plain GRPO."""
    return next((index for index, arm in enumerate(arms) if arm.name == "grpo"), None)


def rows(experiment: Experiment, task: str | None) -> list[Row]:
    """The comparison table for `task`, one row for each arm, in their order."""
    start = start_index(experiment.arms)
    table = []
    for index, arm in enumerate(experiment.arms):
        evaluation = arm.evaluations.get(task) if task else None
        summary = evaluation.summary if evaluation else {}
        steps = [value for row in arm.metrics if (value := number(row.get("step"))) is not None]
        step_seconds = [value for row in arm.metrics if (value := number(row.get("step_seconds"))) is not None]
        grounding = summary.get("grounding")
        table.append(
            Row(
                arm=index,
                label=arm.label,
                n=_count(summary.get("n")),
                accuracy=number(summary.get("accuracy")),
                interval=interval(summary),
                unparsed=_count(summary.get("unparsed")),
                truncated=_count(summary.get("truncated")),
                grounding={key: number(value) for key, value in grounding.items()}
                if isinstance(grounding, dict)
                else {},
                seconds_per_step=statistics.median(step_seconds) if step_seconds else None,
                steps=int(max(steps)) if steps else None,
                seconds=arm.seconds,
                versus_start=compare(experiment, task, index, start) if start not in (None, index) else None,
            )
        )
    return table


def interval(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of a summary's accuracy, None unless both ends are numbers."""
    ends = summary.get("ci")
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return (low, high) if low is not None and high is not None else None


def compare(experiment: Experiment, task: str | None, arm: int, against: int | None) -> Comparison | None:
    """Arm number `arm` against arm number `against` on `task`; None unless both have an accuracy."""
    if task is None or against is None:
        return None
    new, old = (experiment.arms[index] for index in (arm, against))
    after, before = new.evaluations.get(task), old.evaluations.get(task)
    if after is None or before is None:
        return None
    high, low = number(after.summary.get("accuracy")), number(before.summary.get("accuracy"))
    if high is None or low is None:
        return None
    paired = _paired(after, before)
    spread = _interval_of_mean([b - a for a, b in paired]) if len(paired) >= MIN_PAIRS else None
    clear, verdict = _verdict(interval(after.summary), interval(before.summary), spread)
    return Comparison(
        arm=short_label(new.label),
        against=short_label(old.label),
        difference=high - low,
        interval=spread,
        fixed=sum(a < 0.5 <= b for a, b in paired) if paired else None,
        broken=sum(b < 0.5 <= a for a, b in paired) if paired else None,
        clear=clear,
        verdict=verdict,
    )


def comparisons(experiment: Experiment, task: str | None) -> list[Comparison]:
    """The differences worth a sentence: every trained arm against the start, then every attention arm against GRPO."""
    start, baseline = start_index(experiment.arms), baseline_index(experiment.arms)
    pairs = [(index, start) for index in range(len(experiment.arms)) if start is not None and index != start]
    if baseline is not None:
        pairs += [(index, baseline) for index in range(len(experiment.arms)) if index not in (start, baseline)]
    return [found for arm, against in pairs if (found := compare(experiment, task, arm, against))]


def headline(experiment: Experiment, table: list[Row]) -> list[tuple[str, str, int]]:
    """The one sentence, as (label, value, arm) parts: where it started and where each arm ended."""
    return [
        (short_label(row.label), percent(row.accuracy) if row.accuracy is not None else "not evaluated", row.arm)
        for row in table
    ]


def looking(table: list[Row]) -> str | None:
    """One sentence on the attention of the arms, None if no arm was measured."""
    found = [(short_label(row.label), row.grounding.get("pointing")) for row in table]
    parts = [f"{label} {percent(pointing)}" for label, pointing in found if pointing is not None]
    return "Most attended spot in the true box: " + ", ".join(parts) + "." if parts else None


def short_label(label: str) -> str:
    """`label` as it fits a headline."""
    return clip(label.removesuffix(" checkpoint"), 40)


def caveats(experiment: Experiment, task: str | None, table: list[Row]) -> list[str]:
    """What the page does not show, as sentences, with the numbers of this run where it has them."""
    sizes = sorted({row.n for row in table if row.n})
    notes = []
    if task is None:
        notes.append(
            "The curves describe rollouts on training prompts. Without an evaluation on held-out items nothing follows "
            "about what the model learned."
        )
    if any(row.interval for row in table):
        items = f"{sizes[0]:,}" if len(sizes) == 1 else "the"
        notes.append(
            f"The 95 % intervals cover which {items} held-out items were drawn, not which random seed was used. Each "
            "arm is one training run; runs that differ only in their seed commonly differ by several points, so a "
            "ranking of the arms needs many paired seeds."
        )
        notes.append(
            "“Clear of item noise” means that the two accuracy intervals do not overlap; “intervals overlap”, that they do but "
            "the paired difference excludes zero; “within noise”, that zero is possible: these items cannot tell the "
            "two apart, which does not make them equal."
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
    for arm in experiment.arms:
        if task in arm.evaluations:
            return number(arm.evaluations[task].summary.get("majority"))
    return None


def _attention_gradient(arm: Arm) -> str | None:
    ratios = [value for row in arm.metrics if (value := number(row.get("grad/attention_to_token"))) is not None]
    if not ratios:
        return None
    # The mean, as with the paper's anchor the first of every two inner updates has a gradient of exactly zero.
    mean = statistics.fmean(ratios)
    weak = " At this strength it can hardly steer training." if mean < 0.01 else ""
    size = "0 (it trained nothing)" if mean == 0 else f"{compact(mean)} × that of the token loss"
    return f"{arm.label}: the gradient of the attention term had a mean norm of {size}.{weak}"


def _verdict(
    after: tuple[float, float] | None, before: tuple[float, float] | None, paired: tuple[float, float] | None
) -> tuple[bool, str]:
    if after is None or before is None:
        return False, "no interval, no conclusion"
    overlap = after[0] <= before[1] and before[0] <= after[1]
    if not overlap:
        return True, "clear of item noise"
    if paired is not None and (paired[0] > 0 or paired[1] < 0):
        return False, "intervals overlap"
    return False, "within noise"


def _paired(after: Evaluation, before: Evaluation) -> list[tuple[float, float]]:
    """(before, after) correctness of every item; empty unless both were scored on the same, complete set of items."""
    if not after.items or after.items.keys() != before.items.keys():
        return []
    pairs = [
        (number(before.items[key].get("correct")), number(item.get("correct"))) for key, item in after.items.items()
    ]
    complete = [(a, b) for a, b in pairs if a is not None and b is not None]
    return complete if len(complete) == len(pairs) == _count(after.summary.get("n")) else []


def _interval_of_mean(values: list[float]) -> tuple[float, float]:
    """The normal 95 % interval of the mean."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def _count(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)
