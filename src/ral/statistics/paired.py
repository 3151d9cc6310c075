"""Paired tests for two models that answered the same items: every test uses differences per item.

Items that share an image or video are not independent; they have one `cluster`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ral.errors import DataError
from ral.statistics.intervals import Interval, by_cluster, mean_interval, standard_error

Test = Literal["exact McNemar", "exact sign-flip", "clustered t"]
#: The interval of a difference that goes with each test.
INTERVALS: dict[Test, str] = {
    "exact McNemar": "paired bootstrap interval",
    "exact sign-flip": "sign-flip interval",
    "clustered t": "clustered t-interval",
}
#: Up to so many clusters all sign patterns are counted; a t-test needs more of them to be trusted.
FEW_CLUSTERS = 20


@dataclass(frozen=True)
class Outcome:
    """One item as one model answered it: `correct` in [0, 1] (unparsed answers are 0). Items that share an image or a
    video have the same `cluster`; an empty one stands alone.

    Raises DataError, which names the item, for a score that is no number in [0, 1].
    """

    id: str
    correct: float
    cluster: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= 1:  # nor NaN, which no comparison holds for
            raise DataError(f"item {self.id!r}: its score is {self.correct!r}; expected a number from 0 to 1")


@dataclass(frozen=True)
class Comparison:
    """Model B against model A on the `n` items both answered.

    mean_a, mean_b: mean score in [0, 1]. difference: mean of B − A with an interval that agrees with the test: it holds zero
    unless p is below 1 − confidence. standard_error: of that difference, clustered. gained, lost: items where B is better,
    worse. p: two-sided, of the `test` named. p_holm: p adjusted for all tasks compared together, by `compare_tasks`. clusters: independent
    groups of items (n, if none share a medium). unmatched_a, unmatched_b: items only one of the two answered, left out.
    """

    n: int
    mean_a: float
    mean_b: float
    difference: Interval
    standard_error: float
    gained: int
    lost: int
    p: float
    test: Test
    clusters: int
    unmatched_a: int = 0
    unmatched_b: int = 0
    p_holm: float | None = None

    def sentence(self, name_a: str = "A", name_b: str = "B", task: str = "the benchmark") -> str:
        """The sentence that a paper would print, complete enough to be checked."""
        adjusted = "" if self.p_holm is None else f", Holm-adjusted p {p_text(self.p_holm)}"
        grouped = "" if self.clusters == self.n else f" in {self.clusters} clusters"
        unmatched = self.unmatched_a + self.unmatched_b
        left_out = f" {unmatched} items answered by one of them only are left out." if unmatched else ""
        return (
            f"On {task} ({self.n} items{grouped}), {name_b} scores {self.mean_b:.1%} and {name_a} {self.mean_a:.1%}: "
            f"{100 * self.difference.value:+.1f} points ({self.difference.confidence:.0%} {INTERVALS[self.test]} "
            f"{100 * self.difference.low:+.1f} to {100 * self.difference.high:+.1f}; {self.gained} items better, "
            f"{self.lost} worse; {self.test} p {p_text(self.p)}{adjusted}).{left_out}"
        )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of the exact McNemar test, from the items that only one of two models got right."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(
    values: ArrayLike, clusters: Sequence[str] | None = None, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Two-sided p of the exact sign-flip test of paired differences `values` [n], and the interval that inverts it.

    Under the null hypothesis the clusters' sums are symmetric around zero, so every pattern of their signs is equally likely:
    p is the share of the 2^k patterns of k clusters whose sum is as far from zero as the one seen. The
    interval holds the means that the test does not refuse, cut to [-1, 1]; with k < 6 no mean is refused at 5 %.
    Raises ValueError for more than `FEW_CLUSTERS` clusters.
    """
    sums, counts = by_cluster(np.asarray(values, dtype=np.float64), clusters)
    if len(sums) > FEW_CLUSTERS:
        raise ValueError(f"{len(sums)} clusters: all sign patterns are counted for at most {FEW_CLUSTERS}")
    # Flipping the clusters of a set B moves the sum by twice theirs: it falls to where it was or below iff B's mean is ≥ 0.
    flipped, sizes = np.zeros(1), np.zeros(1)
    for total, count in zip(sums, counts, strict=True):
        flipped, sizes = np.concatenate([flipped, flipped + total]), np.concatenate([sizes, sizes + count])
    patterns = len(flipped)
    observed, rounding = sums.sum(), 1e-9 * (np.abs(sums).sum() or 1.0)
    p = float((np.abs(observed - 2 * flipped) >= abs(observed) - rounding).mean())
    means = np.sort(flipped[1:] / sizes[1:])
    refused = int(np.floor((1 - confidence) / 2 * patterns + 1e-9))  # the patterns beyond either end
    low, high = (means[refused - 1], means[-refused]) if refused else (-1.0, 1.0)
    return p, Interval(float(observed / counts.sum()), max(float(low), -1.0), min(float(high), 1.0), confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having been looked at together (Holm 1979), in the order given."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def compare(
    items_a: Iterable[Outcome], items_b: Iterable[Outcome], confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Model B against model A, item by item; raises `DataError` on repeated ids, none in common, or differing clusters.

    Right-or-wrong items that share no medium are tested with exact McNemar. Graded scores, or items in clusters, are tested
    with the exact sign-flip test up to `FEW_CLUSTERS` clusters, and beyond with a t-test of the mean difference on its
    clustered standard error (clusters − 1 degrees of freedom).
    """
    a, b = _by_id(items_a, "A"), _by_id(items_b, "B")
    ids = [id_ for id_ in a if id_ in b]
    if not ids:
        raise DataError(
            f"the two results have no item in common ({len(a)} and {len(b)} items): evaluate both models on one task"
        )
    for id_ in ids:
        if a[id_].cluster != b[id_].cluster:
            raise DataError(
                f"item {id_!r} is in cluster {a[id_].cluster!r} of A but {b[id_].cluster!r} of B: "
                "the results come from different versions of the data"
            )
    scores_a = np.array([a[id_].correct for id_ in ids])
    scores_b = np.array([b[id_].correct for id_ in ids])
    clusters = [a[id_].cluster or f"\0{id_}" for id_ in ids]
    difference = scores_b - scores_a
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    binary = bool(np.isin([scores_a, scores_b], (0.0, 1.0)).all())
    test, p, interval = _tested(difference, clusters, binary, confidence, seed)
    return Comparison(
        n=len(ids),
        mean_a=float(scores_a.mean()),
        mean_b=float(scores_b.mean()),
        difference=interval,
        standard_error=standard_error(difference, clusters),
        gained=gained,
        lost=lost,
        p=p,
        test=test,
        clusters=len(set(clusters)),
        unmatched_a=len(a) - len(ids),
        unmatched_b=len(b) - len(ids),
    )


def _tested(
    difference: NDArray, clusters: Sequence[str], binary: bool, confidence: float, seed: int
) -> tuple[Test, float, Interval]:
    """The test that fits differences [n] in `clusters` [n], its p, and an interval that agrees with it."""
    groups = len(set(clusters))
    if binary and groups == len(difference):
        p = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
        found = mean_interval(difference, clusters, confidence, seed=seed)
        if p >= 1 - confidence:  # a bootstrap of few changed items is narrower than the exact test
            found = replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
        return "exact McNemar", p, found
    if groups <= FEW_CLUSTERS:
        return "exact sign-flip", *sign_flip(difference, clusters, confidence)
    mean, error = float(difference.mean()), standard_error(difference, clusters)
    half = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * error
    return "clustered t", _t_test(mean, error, groups), Interval(mean, mean - half, mean + half, confidence)


def compare_tasks(
    tasks: Mapping[str, tuple[Iterable[Outcome], Iterable[Outcome]]], confidence: float = 0.95, seed: int = 0
) -> dict[str, Comparison]:
    """`compare` per task, with p-values adjusted for the number of tasks (`p_holm`)."""
    results = {task: compare(a, b, confidence, seed) for task, (a, b) in tasks.items()}
    adjusted = holm([result.p for result in results.values()])
    return {task: replace(result, p_holm=p) for (task, result), p in zip(results.items(), adjusted, strict=True)}


def _by_id(items: Iterable[Outcome], name: str) -> dict[str, Outcome]:
    items = list(items)
    repeated = [id_ for id_, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise DataError(f"item {repeated[0]!r} occurs more than once in the results of {name}; ids must be unique")
    return {item.id: item for item in items}


def _t_test(mean: float, error: float, groups: int) -> float:
    """Two-sided p of a mean with its standard error; of clusters that all differ alike, that of the sign-flip test."""
    if mean == 0:
        return 1.0
    if error == 0:
        return 2.0 ** (1 - groups)
    return float(2 * stats.t.sf(abs(mean) / error, groups - 1))


def p_text(p: float) -> str:
    """A p-value as text that follows "p"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
