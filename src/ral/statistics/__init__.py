"""Statistics that compare models: intervals, paired tests, and the sentence that a paper would print.

Items of one benchmark are paired: see `ral.statistics.paired`. Over training seeds, use the interquartile mean and the
probability of improvement: see `ral.statistics.seeds`.
"""

from ral.statistics.intervals import (
    RESAMPLES,
    Interval,
    mean_interval,
    proportion_interval,
    seed_band,
    seed_interval,
    standard_error,
)
from ral.statistics.paired import (
    FEW_CLUSTERS,
    Comparison,
    Outcome,
    compare,
    compare_tasks,
    holm,
    mcnemar,
    p_text,
    sign_flip,
)
from ral.statistics.seeds import interquartile_mean, interquartile_mean_interval, probability_of_improvement

__all__ = [
    "FEW_CLUSTERS",
    "RESAMPLES",
    "Comparison",
    "Interval",
    "Outcome",
    "compare",
    "compare_tasks",
    "holm",
    "interquartile_mean",
    "interquartile_mean_interval",
    "mcnemar",
    "mean_interval",
    "p_text",
    "probability_of_improvement",
    "proportion_interval",
    "seed_band",
    "seed_interval",
    "sign_flip",
    "standard_error",
]
