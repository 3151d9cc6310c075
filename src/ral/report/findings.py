"""What the numbers allow to be said, and in which words: scores, paired differences, the headline and the caveats.

Differences are over seeds where two arms have at least two seeds in common (paired Student's t), else over the items of one
run each (paired bootstrap, exact McNemar), by the statistics that `ral compare` uses. The p-values of all differences on a
page are adjusted together (Holm), and only what is then below 0.05 is called clear.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scipy import stats

from ral.errors import DataError
from ral.report.artefacts import Arm, Evaluation, Experiment, Run, number
from ral.report.templating import clip, compact, percent, points
from ral.statistics import Outcome, holm, p_text, seed_interval
from ral.statistics import compare as compare_items

#: Differences with an adjusted p below this are called clear.
LEVEL = 0.05


@dataclass(frozen=True)
class Row:
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
    versus_start: Comparison | None = None


@dataclass(frozen=True)
class Comparison:
    """Accuracy of arm number `arm` minus that of `against`, by their short labels `name` and `other`.

    `interval` is the 95 % interval of the paired difference `over` its `n` seeds or items, None where nothing is paired.
    fixed, broken: items only the one, only the other got right, of a comparison over items. p is two-sided, `p_holm` adjusted
    for all comparisons of the page; `verdict` is what a reader may conclude, `sentence` what a paper would print.
    """

    arm: int
    against: int
    name: str
    other: str
    difference: float
    interval: tuple[float, float] | None = None
    over: Literal["seeds", "items"] | None = None
    n: int = 0
    fixed: int | None = None
    broken: int | None = None
    p: float | None = None
    p_holm: float | None = None
    sentence: str = ""

    @property
    def clear(self) -> bool:
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def verdict(self) -> str:
        if self.over is None:
            return "not paired, no conclusion"
        if self.clear:
            return f"clear of {self.over[:-1]} noise"
        if self.p is not None and self.p < LEVEL:
            return "not clear: one of several looks"
        return f"within {self.over[:-1]} noise"


def start_index(arms: Sequence[Arm]) -> int | None:
    """The arm that was not trained; None when there is none, as in a single run."""
    named = [index for index, arm in enumerate(arms) if arm.name == "start"]
    untrained = [index for index, arm in enumerate(arms) if not arm.first.trained]
    return next(iter(named), None) if named else untrained[0] if len(untrained) == 1 and len(arms) > 1 else None


def baseline_index(arms: Sequence[Arm]) -> int | None:
    """The arm that the attention arms are to beat: plain GRPO, by its settings, without them by its name."""
    plain = [
        index
        for index, arm in enumerate(arms)
        if (config := arm.first.config).get("attention_coef") == 0
        and config.get("attention_anchor", "old") != "explore"
        and not config.get("distill_coef")
        and not config.get("attention_distill_coef")
    ]
    named = [index for index, arm in enumerate(arms) if arm.name == "grpo"]
    return next(iter(named or plain), None)


def rows(experiment: Experiment, task: str | None, found: Sequence[Comparison] = ()) -> list[Row]:
    """The comparison table for `task`, one row for each arm, in their order; `found` are the page's comparisons."""
    start = start_index(experiment.arms)
    table = []
    for index, arm in enumerate(experiment.arms):
        summaries = [run.evaluations[task].summary for run in arm.evaluated(task)] if task else []
        accuracies = [value for summary in summaries if (value := number(summary.get("accuracy"))) is not None]
        logged = [row for run in arm.runs for row in run.metrics]
        table.append(
            Row(
                arm=index,
                label=arm.label,
                seeds=len(accuracies),
                n=next((n for summary in summaries if (n := _count(summary.get("n")))), None),
                accuracy=_mean(accuracies),
                interval=_over_seeds(accuracies) if len(accuracies) > 1 else interval(summaries[0]) if summaries else None,
                unparsed=_total(summary.get("unparsed") for summary in summaries),
                truncated=_total(summary.get("truncated") for summary in summaries),
                grounding=_grounding(summaries),
                seconds_per_step=statistics.median(costs) if (costs := _numbers(logged, "step_seconds")) else None,
                steps=int(max(steps)) if (steps := _numbers(logged, "step")) else None,
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
    return {key: _mean(_numbers(measured, key)) for key in dict.fromkeys(key for one in measured for key in one)}


def interval(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of a summary's accuracy, None unless both ends are numbers."""
    ends = summary.get("ci")
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return (low, high) if low is not None and high is not None else None


def compare(experiment: Experiment, task: str | None, arm: int, against: int | None) -> Comparison | None:
    """Arm number `arm` against arm number `against` on `task`; None unless both have an accuracy.

    A start is one checkpoint: every seed of the other arm is paired with it.
    """
    if task is None or against is None:
        return None
    new, old = (experiment.arms[index] for index in (arm, against))
    after, before = (_accuracies(one, task) for one in (new, old))
    if not after or not before:
        return None
    pairs = [(run, other) for run in after for other in before if run.seed == other.seed or not other.trained]
    found = Comparison(
        arm, against, short_label(new.label), short_label(old.label),
        difference=statistics.fmean(after.values()) - statistics.fmean(before.values()),
    )  # fmt: skip
    if len(pairs) > 1:
        return _by_seed(found, [after[run] - before[other] for run, other in pairs], task)
    if pairs:
        return _by_item(found, *(run.evaluations[task] for run in pairs[0]))
    return found


def _accuracies(arm: Arm, task: str) -> dict[Run, float]:
    scores = {run: number(run.evaluations[task].summary.get("accuracy")) for run in arm.evaluated(task)}
    return {run: score for run, score in scores.items() if score is not None}


def _by_seed(found: Comparison, differences: list[float], task: str) -> Comparison:
    """`found` with Student's t over the paired seeds; without a p where all differences are the same."""
    spread = seed_interval(differences)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if len(set(differences)) > 1 else None
    sentence = (
        f"On {task}, over {len(differences)} paired seeds, {found.name} scores {points(spread.value)} points against "
        f"{found.other} (95 % t-interval {points(spread.low)} to {points(spread.high)}"
        + ("" if p is None else f"; paired t-test p {p_text(p)}") + ")."
    )  # fmt: skip
    return replace(
        found, difference=spread.value, interval=(spread.low, spread.high), over="seeds", n=len(differences), p=p,
        sentence=sentence,
    )  # fmt: skip


def _by_item(found: Comparison, after: Evaluation, before: Evaluation) -> Comparison:
    """`found` with the paired statistics over items; unchanged unless both were scored on the same, complete set."""
    if (
        not after.items
        or after.items.keys() != before.items.keys()
        or len(after.items) != _count(after.summary.get("n"))
    ):
        return found
    outcomes = [[_outcome(key, item) for key, item in evaluation.items.items()] for evaluation in (before, after)]
    if any(outcome is None for side in outcomes for outcome in side):
        return found
    try:
        before_items, after_items = ([one for one in side if one is not None] for side in outcomes)
        result = compare_items(before_items, after_items)
    except DataError:  # the two evaluations do not agree on which items share an image
        return found
    if not math.isfinite(result.difference.low):
        return found
    return replace(
        found, interval=(result.difference.low, result.difference.high), over="items", n=result.n, fixed=result.gained,
        broken=result.lost, p=result.p, sentence=result.sentence(found.other, found.name, after.task),
    )  # fmt: skip


def _outcome(key: str, item: Mapping[str, Any]) -> Outcome | None:
    correct = number(item.get("correct"))
    return None if correct is None else Outcome(key, correct, str(item.get("cluster") or ""))


def comparisons(experiment: Experiment, task: str | None) -> list[Comparison]:
    """The differences worth a sentence: every trained arm against the start, then every attention arm against GRPO."""
    start, baseline = start_index(experiment.arms), baseline_index(experiment.arms)
    pairs = [(index, start) for index in range(len(experiment.arms)) if start is not None and index != start]
    if baseline is not None:
        pairs += [(index, baseline) for index in range(len(experiment.arms)) if index not in (start, baseline)]
    found = [one for arm, against in pairs if (one := compare(experiment, task, arm, against))]
    tested = [index for index, one in enumerate(found) if one.p is not None]
    for index, p in zip(tested, holm([one.p for one in found if one.p is not None]) if tested else (), strict=True):
        found[index] = replace(found[index], p_holm=p)
    return found


@dataclass(frozen=True)
class Headline:
    """The sentence on top of the page as (text, colour of the arm or None) parts, and beneath it how sure it is."""

    parts: list[tuple[str, int | None]]
    certainty: str


def headline(experiment: Experiment, task: str | None, table: Sequence[Row], found: Sequence[Comparison]) -> Headline:
    """What was found and how sure it is, from the comparisons alone."""
    scored = [row for row in table if row.accuracy is not None]
    if experiment.running:
        return _progress(experiment)
    if task is None or not scored:
        return Headline([("Trained, not yet evaluated.", None)], "")
    start, baseline = start_index(experiment.arms), baseline_index(experiment.arms)
    if len(scored) == 1:
        (row,) = scored
        parts: list[tuple[str, int | None]] = [(percent(row.accuracy), row.arm), (" of the answers are right.", None)]
        return Headline(parts, _certainty(scored, ()))
    before = next((row for row in scored if row.arm == start), None)
    trained = [row for row in scored if row.arm != start]
    parts = _learned(before, trained, [one for one in found if one.against == start])
    against = [one for one in found if one.against == baseline]
    if baseline is not None and against:
        parts += [(" ", None), *_attention(experiment, against)]
    return Headline(parts, _certainty(scored, found))


def _progress(experiment: Experiment) -> Headline:
    """How far the runs are that go on."""
    parts: list[tuple[str, int | None]] = [("In training: ", None)]
    for index, arm in enumerate(experiment.arms):
        steps, last = _numbers(arm.first.metrics, "step"), _count(arm.first.config.get("max_steps"))
        if steps:
            share = f"step {max(steps):,.0f}" + (f" of {last:,}" if last and last > 0 else "")
            parts += [(f"{short_label(arm.label)} ", None), (share, index), (", ", None)]
    return Headline([*parts[:-1], (".", None)] if len(parts) > 1 else [("In training.", None)], "")


def _learned(before: Row | None, trained: Sequence[Row], found: Sequence[Comparison]) -> list[tuple[str, int | None]]:
    """Where training started and where it ended."""
    low, high = (pick(trained, key=lambda row: row.accuracy or 0.0) for pick in (min, max))
    ends: list[tuple[str, int | None]] = [(percent(high.accuracy), high.arm)]
    if percent(low.accuracy) != percent(high.accuracy):
        ends = [(f"{100 * (low.accuracy or 0.0):.0f}", low.arm), ("–", None), *ends]
    if before is None:
        return [("The arms end at ", None), *ends, (".", None)]
    if all(one.clear and one.difference > 0 for one in found) and found:
        verb = "Training lifts accuracy from "
    elif any(one.clear for one in found):
        verb = "Training moves accuracy from "
    else:
        verb = "No clear effect of training: accuracy goes from "
    return [(verb, None), (percent(before.accuracy), before.arm), (" to ", None), *ends, (".", None)]


def _attention(experiment: Experiment, found: Sequence[Comparison]) -> list[tuple[str, int | None]]:
    """Which arms are apart from GRPO."""
    other = found[0].other
    clear = [one for one in found if one.clear]
    if not clear:
        names = found[0].name if len(found) == 1 else "no other arm"
        return [
            (
                f"{'Nothing sets ' + names + ' apart' if len(found) == 1 else 'No other arm is clearly apart'} from {other}.",
                None,
            )
        ]
    best = max(clear, key=lambda one: abs(one.difference))
    way = "ahead of" if best.difference > 0 else "behind"
    size = f"{abs(best.difference) * 100:.1f} points"
    name = best.name.replace("-", "\u2011")  # large type must not break inside a name
    return [(f"{name} is ", None), (size, best.arm), (f" {way} {other}.", None)]


def _certainty(scored: Sequence[Row], found: Sequence[Comparison]) -> str:
    """How sure the headline is, in words."""
    seeds = [one.n for one in found if one.over == "seeds"]
    items = sorted({row.n for row in scored if row.n})
    held_out = f"{items[0]:,} held-out items" if len(items) == 1 else "held-out items"
    if len(scored) == 1:
        (row,) = scored
        if row.interval is None:
            return f"Measured on {held_out}."
        spread = f"95 % interval {percent(row.interval[0], 1)} to {percent(row.interval[1], 1)}"
        over = f"over {row.seeds} seeds" if row.seeds > 1 else f"over {held_out}; one training run"
        return f"{spread} {over}."
    if seeds:
        count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        return (
            f"Over {count} paired seeds with {held_out} each; “clear” is p < 0.05 after adjusting for all comparisons."
        )
    return (
        f"One training run for each arm, {held_out}: the intervals say what other items would change, not what another "
        "seed would."
    )


def looking(table: Sequence[Row]) -> str | None:
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
    ratios = _numbers([row for run in arm.runs for row in run.metrics], "grad/attention_to_token")
    if not ratios:
        return None
    # The mean, as with the paper's anchor the first of every two inner updates has a gradient of exactly zero.
    mean = statistics.fmean(ratios)
    weak = " At this strength it can hardly steer training." if mean < 0.01 else ""
    size = "0 (it trained nothing)" if mean == 0 else f"{compact(mean)} × that of the token loss"
    return f"{arm.label}: the gradient of the attention term had a mean norm of {size}.{weak}"


def _numbers(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [value for row in rows if (value := number(row.get(key))) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _total(values: Iterable[object]) -> int | None:
    counts = [count for value in values if (count := _count(value)) is not None]
    return sum(counts) if counts else None


def _count(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)
