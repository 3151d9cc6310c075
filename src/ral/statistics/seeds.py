"""Many seeds on several tasks: the interquartile mean and the probability of improvement (arXiv 2108.13264)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ral.statistics.intervals import RESAMPLES, Interval


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all `scores`, any shape: less noisy than a median, less moved by one seed than a mean.

    As in rliable, a quarter of the scores, rounded down, is cut at either end.
    """
    return float(stats.trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=None))


def interquartile_mean_interval(
    scores: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """IQM of `scores` [seeds, tasks] with a bootstrap interval that resamples seeds within each task (stratified)."""
    scores = _seeds_by_task(scores)
    sampled = _resample_seeds(scores, resamples, np.random.default_rng(seed))
    means = stats.trim_mean(sampled.reshape(resamples, -1), 0.25, axis=1)
    return _percentile(interquartile_mean(scores), means, confidence)


def probability_of_improvement(
    scores_a: ArrayLike, scores_b: ArrayLike, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Chance that a run of B beats a run of A on a task drawn at random, ties half.

    scores_a [seeds, tasks], scores_b [seeds', tasks]; a vector is one task. The interval is a bootstrap stratified by
    task. It says how often, not by how much.
    """
    a, b = _seeds_by_task(scores_a), _seeds_by_task(scores_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the scores cover {a.shape[1]} and {b.shape[1]} tasks: expected [seeds, tasks] on the same")

    def chance(a: NDArray, b: NDArray) -> NDArray:  # [..., seeds, tasks] each
        difference = np.sign(b[..., :, None, :] - a[..., None, :, :])
        return (1 + difference.mean(axis=(-3, -2, -1))) / 2

    generator = np.random.default_rng(seed)
    sampled = chance(_resample_seeds(a, resamples, generator), _resample_seeds(b, resamples, generator))
    return _percentile(float(chance(a, b)), sampled, confidence)


def _seeds_by_task(scores: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"expected scores [seeds, tasks], got shape {scores.shape}")
    return scores


def _resample_seeds(scores: NDArray, resamples: int, generator: np.random.Generator) -> NDArray:
    """[resamples, seeds, tasks]: seeds drawn with replacement, for each task on its own."""
    index = generator.integers(len(scores), size=(resamples, *scores.shape))
    return np.take_along_axis(scores[None], index, axis=1)


def _percentile(value: float, sampled: NDArray, confidence: float) -> Interval:
    low, high = np.quantile(sampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), confidence)
