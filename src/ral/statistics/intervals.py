"""Intervals of means and proportions, over items and over a few seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

#: Resamples of a bootstrap: the ends of a 95 % interval then repeat to about a hundredth of its width.
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval, in the unit of the values it came from."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def __format__(self, spec: str) -> str:
        """`f"{interval:.1f}"` is "1.0 [0.5, 1.5]"."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]" if spec else str(self)


def seed_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean, for a few runs that differ in their seed. Of one value the ends are infinitely far."""
    mean, half = seed_band(np.asarray(values, dtype=float)[:, None], confidence)
    return Interval(float(mean[0]), float(mean[0] - half[0]), float(mean[0] + half[0]), confidence)


def seed_band(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`seed_interval` at every point of curves `values` [runs, points]: means [points] and half widths [points]."""
    runs = len(values)
    if runs < 2:
        return values.mean(axis=0), np.full(values.shape[1:], np.inf)
    half = stats.t.ppf((1 + confidence) / 2, runs - 1) * values.std(axis=0, ddof=1) / runs**0.5
    return values.mean(axis=0), half


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, for right-or-wrong items that share nothing. Raises at n = 0."""
    result = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(result.low), float(result.high), confidence)


def mean_interval(
    values: ArrayLike,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of `values` [n]; whole clusters [n] are resampled where given.

    Paired differences go in as values. Scores that are all equal give an interval of no width: for a proportion of 0 or
    1 use `proportion_interval`. A single cluster gives an infinite one.
    """
    sums, counts = by_cluster(np.asarray(values, dtype=np.float64), clusters)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(mean, -np.inf, np.inf, confidence)  # one cluster says nothing about the spread between them

    def ratio(sums: NDArray, counts: NDArray, axis: int) -> NDArray:
        return sums.sum(axis) / counts.sum(axis)

    result = stats.bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(sums)),
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(result.low), float(result.high), confidence)


def standard_error(values: ArrayLike, clusters: Sequence[str] | None = None) -> float:
    """Standard error of the mean of `values` [n]: s/√n, or cluster-robust where clusters [n] are given.

    The cluster-robust form is that of Miller (arXiv 2411.00640) with the usual factor G/(G−1) for G clusters, which
    makes it s/√n when every item is its own cluster. NaN for a single cluster.
    """
    values = np.asarray(values, dtype=np.float64)
    sums, _ = by_cluster(values - values.mean(), clusters)
    groups = len(sums)
    if groups == 1:
        return float("nan")
    return float(np.sqrt(groups / (groups - 1) * (sums**2).sum()) / len(values))


def by_cluster(values: NDArray, clusters: Sequence[str] | None) -> tuple[NDArray, NDArray]:
    """Sum and count of `values` [n] in each cluster; without clusters each value is one."""
    if values.ndim != 1 or not values.size:
        raise ValueError(f"expected a non-empty list of scores, got shape {values.shape}")
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} scores but {len(clusters)} cluster names")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index).astype(np.float64)
