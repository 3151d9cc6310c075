"""Paired differences between arms: which pairs are compared, and the conclusion for each.

Differences are over seeds where two arms have at least two seeds in common (paired Student's t), else over the items of one
run each, by the statistics that `ral compare` uses. The p-values of all differences on a page are adjusted together (Holm), and
only what is then below 0.05 is called clear.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import stats

from ral.errors import DataError
from ral.evaluate.comparison import Evaluated, asked_differently, refuse_unlike
from ral.report.artefacts import Evaluation, Run, number
from ral.report.experiment import Arm, Experiment
from ral.report.templating import clip, points
from ral.statistics import compare, holm, p_text, seed_interval

#: Differences with an adjusted p below this are called clear.
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
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


def reference_index(arms: Sequence[Arm]) -> int | None:
    """The arm that the other trained arms are compared with: the baseline, without one the first arm that is no start."""
    baseline, start = baseline_index(arms), start_index(arms)
    return baseline if baseline is not None else next((index for index in range(len(arms)) if index != start), None)


def difference_of(experiment: Experiment, task: str | None, arm: int, against: int | None) -> Difference | None:
    """Arm number `arm` against arm number `against` on `task`; None unless both have an accuracy.

    A start is one checkpoint: every seed of the other arm is paired with it. Two arms of one run each are paired over their items
    whatever their seeds are.
    """
    if task is None or against is None:
        return None
    new, old = (experiment.arms[index] for index in (arm, against))
    after, before = (_accuracies(one, task) for one in (new, old))
    if not after or not before:
        return None
    alone = len(after) == len(before) == 1
    pairs = [(run, other) for run in after for other in before if alone or run.seed == other.seed or not other.trained]
    found = Difference(
        arm, against, short_label(new.label), short_label(old.label),
        difference=statistics.fmean(after.values()) - statistics.fmean(before.values()),
    )  # fmt: skip
    if not pairs:
        return found
    new_items, old_items = (
        _evaluated(name, run.evaluations[task]) for name, run in zip((found.name, found.other), pairs[0], strict=True)
    )
    try:
        refuse_unlike(old_items, new_items)
    except DataError as error:
        return replace(found, sentence=f"{found.name} and {found.other} are not compared on {task}. {error}.")
    if len(pairs) > 1:
        found = _by_seed(found, [after[run] - before[other] for run, other in pairs], task)
    elif all(_complete(run.evaluations[task]) for run in pairs[0]):
        found = _by_item(found, new_items, old_items, task)
    remark = asked_differently(old_items, new_items) if found.sentence else ""
    return replace(found, sentence=f"{found.sentence} {remark}".strip())


def _accuracies(arm: Arm, task: str) -> dict[Run, float]:
    scores = {run: number(run.evaluations[task].summary.get("accuracy")) for run in arm.evaluated(task)}
    return {run: score for run, score in scores.items() if score is not None}


def _evaluated(name: str, evaluation: Evaluation) -> Evaluated:
    settings = evaluation.settings or evaluation.summary.get("settings")
    return Evaluated(name, evaluation.items, settings if isinstance(settings, dict) else None)


def _complete(evaluation: Evaluation) -> bool:
    """Whether all items that the summary counts are there."""
    return bool(evaluation.items) and len(evaluation.items) == number(evaluation.summary.get("n"))


def _by_seed(found: Difference, differences: list[float], task: str) -> Difference:
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


def _by_item(found: Difference, after: Evaluated, before: Evaluated, task: str) -> Difference:
    """`found` with the paired statistics over the items that both answered; unchanged where there are none."""
    try:
        items_before, items_after = ([item.outcome for item in side.items.values()] for side in (before, after))
        result = compare(items_before, items_after)
    except DataError:  # no item in common, or they do not agree on which items share an image
        return found
    return replace(
        found, difference=result.difference.value, interval=(result.difference.low, result.difference.high), over="items",
        n=result.n, fixed=result.gained, broken=result.lost, p=result.p,
        sentence=result.sentence(found.other, found.name, task),
    )  # fmt: skip


def differences(experiment: Experiment, task: str | None) -> list[Difference]:
    """The differences worth a sentence: every trained arm against the start, then every other one against the reference."""
    start, reference = start_index(experiment.arms), reference_index(experiment.arms)
    pairs = [(index, start) for index in range(len(experiment.arms)) if start is not None and index != start]
    if reference is not None:
        pairs += [(index, reference) for index in range(len(experiment.arms)) if index not in (start, reference)]
    found = [one for arm, against in pairs if (one := difference_of(experiment, task, arm, against))]
    tested = [index for index, one in enumerate(found) if one.p is not None]
    for index, p in zip(tested, holm([one.p for one in found if one.p is not None]) if tested else (), strict=True):
        found[index] = replace(found[index], p_holm=p)
    return found


def short_label(label: str) -> str:
    """`label` as it fits a headline."""
    return clip(label.removesuffix(" checkpoint"), 40)
