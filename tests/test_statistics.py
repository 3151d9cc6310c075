from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from ral.errors import DataError
from ral.statistics import (
    Comparison,
    Interval,
    Outcome,
    compare,
    compare_tasks,
    holm,
    interquartile_mean,
    interquartile_mean_interval,
    mcnemar,
    mean_interval,
    probability_of_improvement,
    proportion_interval,
    seed_interval,
    sign_flip,
    standard_error,
)


def outcomes(scores, clusters=None):
    return [Outcome(str(i), float(score), clusters[i] if clusters else "") for i, score in enumerate(scores)]


@pytest.mark.parametrize(("successes", "n"), [(0, 191), (131, 191), (140, 191), (191, 191), (1, 2)])
def test_proportion_interval_is_wilsons(successes, n):
    low, high = proportion_confint(successes, n, method="wilson")
    assert proportion_interval(successes, n) == Interval(successes / n, pytest.approx(low), pytest.approx(high))


def test_the_interval_over_seeds_is_statsmodels():
    values = [83.2, 86.3, 86.3]
    found = seed_interval(values)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean())
    assert seed_interval([3.0]).low == -math.inf


def test_bootstrap_agrees_with_scipy_and_with_theory():
    values = np.random.default_rng(1).normal(0.3, 1.0, size=400)
    interval = mean_interval(values, seed=5)
    reference = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=9)
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=0.005)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=0.005)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.005)
    assert mean_interval(values, seed=5) == interval


def test_clusters_of_copies_count_once():
    values = np.random.default_rng(2).normal(size=50)
    names = [str(i) for i in range(50)]
    single = mean_interval(values, names)
    copies = mean_interval(np.repeat(values, 4), list(np.repeat(names, 4)))
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high))
    # Treated as independent, the copies would halve the interval.
    independent = mean_interval(np.repeat(values, 4))
    assert independent.high - independent.low == pytest.approx((single.high - single.low) / 2, rel=0.05)


def test_standard_error_agrees_with_statsmodels_on_unequal_clusters():
    generator = np.random.default_rng(3)
    clusters = generator.integers(30, size=200)
    values = generator.normal(size=30)[clusters] + generator.normal(size=200)
    fit = OLS(values, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert standard_error(values, [str(c) for c in clusters]) == pytest.approx(fit.bse[0], rel=1e-9)
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert np.isnan(standard_error([0.0, 1.0], ["one", "one"]))


@pytest.mark.parametrize("clustered", [False, True])
def test_coverage_of_the_95_percent_interval(clustered):
    """1,500 benchmarks of 191 items with a known accuracy: the interval holds it in 93 to 97 % of them."""
    generator = np.random.default_rng(11)
    groups = 95
    clusters = generator.integers(groups, size=191) if clustered else np.arange(191)
    names = [str(c) for c in clusters]
    hits = 0
    for run in range(1_500):
        # Beta(7, 3) has mean 0.7; items of a cluster share its draw.
        rate = generator.beta(7, 3, size=groups)[clusters] if clustered else 0.7
        values = generator.random(191) < rate
        interval = mean_interval(values, names if clustered else None, resamples=1_000, seed=run)
        hits += interval.low <= 0.7 <= interval.high
    assert 0.93 <= hits / 1_500 <= 0.97


def test_coverage_of_wilsons_interval_averages_95_percent():
    generator = np.random.default_rng(12)
    rates = generator.uniform(0.05, 0.95, size=1_500)
    successes = generator.binomial(191, rates)
    intervals = [proportion_interval(int(k), 191) for k in successes]
    assert 0.93 <= np.mean([i.low <= rate <= i.high for i, rate in zip(intervals, rates, strict=True)]) <= 0.97


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (14, 5), (5, 14), (1, 0), (8, 8), (40, 2)])
def test_mcnemar_is_exact(gained, lost):
    reference = statsmodels_mcnemar([[100, gained], [lost, 80]], exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(reference)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_holm_agrees_with_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_interquartile_mean():
    assert interquartile_mean([0, 1, 2, 3, 4, 5, 6, 1000]) == 3.5
    # Ten seeds: two are cut at either end, as in rliable's trim_mean.
    assert interquartile_mean(np.arange(10.0)[:, None] ** 2) == np.mean([4, 9, 16, 25, 36, 49])
    scores = np.random.default_rng(4).normal(0.5, 0.1, size=(10, 3))
    interval = interquartile_mean_interval(scores)
    assert interval.value == interquartile_mean(scores)
    assert 0.03 < interval.high - interval.low < 0.13
    assert interval.low < interval.value < interval.high


def test_bootstrap_over_seeds_is_stratified_by_task():
    # Two tasks of very different level without any spread between seeds: no uncertainty is left.
    scores = np.tile([0.1, 0.9], (10, 1))
    assert interquartile_mean_interval(scores) == Interval(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))


def test_seeds_are_drawn_for_every_task_on_its_own():
    """Two tasks whose seeds mirror each other: drawn together, every sample would have the same mean."""
    mirrored = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    interval = interquartile_mean_interval(mirrored)
    assert interval.value == 0.5
    assert interval.low < 0.2
    assert interval.high > 0.8
    chance = probability_of_improvement(mirrored, mirrored)
    assert chance.high - chance.low > 0.3


def test_probability_of_improvement_is_mann_whitney():
    # Final accuracy of six paired seeds under two arms.
    a = [62, 89, 78, 80, 81, 74]
    b = [85, 88, 78, 83, 87, 85]
    interval = probability_of_improvement(a, b)
    assert interval.value == pytest.approx(stats.mannwhitneyu(b, a).statistic / 36)
    assert interval.low < interval.value < interval.high <= 1
    two_tasks = probability_of_improvement(np.stack([a, b], 1), np.stack([b, a], 1))
    assert two_tasks.value == pytest.approx(0.5)
    assert probability_of_improvement([1, 1], [1, 1]) == Interval(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="1 and 2 tasks"):
        probability_of_improvement(a, np.ones((6, 2)))


def vstar() -> tuple[list[Outcome], list[Outcome]]:
    """191 items; A right on 131 (68.6 %), B on 140 (73.3 %): 14 gained, 5 lost."""
    a = [1] * 131 + [0] * 60
    b = [1] * 126 + [0] * 5 + [1] * 14 + [0] * 46
    return outcomes(a), outcomes(b)


def test_compare_pairs_items_by_id():
    a, b = vstar()
    result = compare(a, reversed(b))
    assert (result.n, result.gained, result.lost, result.clusters) == (191, 14, 5, 191)
    assert result.difference.value == pytest.approx(9 / 191)
    assert result.test == "exact McNemar"
    assert result.p == mcnemar(14, 5) == pytest.approx(0.0636, abs=1e-4)
    assert result.standard_error == pytest.approx(stats.sem([1] * 14 + [-1] * 5 + [0] * 172))
    # Resampling pairs is drawing gained, lost and unchanged items; one item more or less is rounding.
    draws = np.random.default_rng(8).multinomial(191, np.array([14, 5, 172]) / 191, size=200_000)
    low, high = np.quantile(draws[:, 0] - draws[:, 1], [0.025, 0.975]) / 191
    assert (result.difference.low, result.difference.high) == pytest.approx((low, high), abs=1.001 / 191)
    assert compare(a, b) == result


def test_sentence():
    a, b = vstar()
    sentence = compare(a, b).sentence("GRPO", "RAL", "V*")
    assert sentence.startswith("On V* (191 items), RAL scores 73.3% and GRPO 68.6%: +4.7 points (95% paired bootstrap")
    assert sentence.endswith("14 items better, 5 worse; exact McNemar p = 0.064).")
    both = compare_tasks({"V*": (a, b), "none": (a, a)})
    assert both["V*"].p_holm == pytest.approx(2 * both["V*"].p)
    assert both["none"].p_holm == 1.0
    assert "Holm-adjusted p = 0.127" in both["V*"].sentence()


def test_clustered_and_graded_items_use_a_t_test():
    a, b = (outcomes([o.correct for o in items], [str(i // 4) for i in range(191)]) for items in vstar())
    result = compare(a, b)
    assert (result.test, result.clusters) == ("clustered t", 48)
    # Gains come in runs of ids, so neighbours agree and the error grows.
    assert result.standard_error > 1.5 * compare(*vstar()).standard_error
    assert result.p == pytest.approx(2 * stats.t.sf(9 / 191 / result.standard_error, 47))
    assert "in 48 clusters" in result.sentence()

    generator = np.random.default_rng(6)
    graded_a, graded_b = generator.random((2, 60))
    graded = compare(outcomes(graded_a), outcomes(graded_b))
    assert graded.test == "clustered t"
    assert graded.p == pytest.approx(stats.ttest_rel(graded_b, graded_a).pvalue)


@pytest.mark.parametrize(("clusters", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_few_clusters_that_all_gain_say_as_much_as_as_few_coins(clusters, p):
    """Nine items on every image, all gained: what counts is the number of images."""
    names = [str(i // 9) for i in range(9 * clusters)]
    result = compare(outcomes([0] * len(names), names), outcomes([1] * len(names), names))
    assert (result.test, result.p) == ("exact sign-flip", p)
    assert result.difference.low == (-1.0 if p > 0.05 else 1.0), "below six clusters nothing can be refused"
    assert f"sign-flip interval {100 * result.difference.low:+.1f} to +100.0" in result.sentence()


def test_sign_flips_are_counted_one_by_one():
    generator = np.random.default_rng(13)
    values, clusters = generator.normal(0.2, 0.4, size=17).clip(-1, 1), [str(i % 7) for i in range(17)]
    sums = np.array([values[i::7].sum() for i in range(7)])
    patterns = np.array(list(itertools.product((-1, 1), repeat=7))) @ sums
    p, interval = sign_flip(values, clusters)
    assert p == pytest.approx((np.abs(patterns) >= abs(sums.sum()) - 1e-12).mean())
    assert interval.value == pytest.approx(values.mean())
    # The interval is what the test does not refuse: at either end p passes 5 %.
    for end, inwards in ((interval.low, 1e-6), (interval.high, -1e-6)):
        assert sign_flip(values - end - inwards, clusters)[0] > 0.05
        assert sign_flip(values - end + inwards, clusters)[0] <= 0.05
    alone = sign_flip(values[:9])[0]
    assert alone == pytest.approx(stats.permutation_test(
        (values[:9],), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue)  # fmt: skip
    with pytest.raises(ValueError, match="21 clusters"):
        sign_flip(np.ones(21))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_interval_leaves_zero_out_exactly_where_the_test_refuses_it(data):
    kind = data.draw(st.sampled_from(["right or wrong", "graded", "clustered", "many clusters"]))
    n = data.draw(st.integers(1, 30)) + (30 if kind == "many clusters" else 0)
    scores = st.lists(
        st.sampled_from([0.0, 1.0] if kind == "right or wrong" else [0.0, 0.3, 1.0]), min_size=n, max_size=n
    )
    clusters = (
        None if kind in ("right or wrong", "graded") else [str(i // 2 if kind == "clustered" else i) for i in range(n)]
    )
    result = compare(outcomes(data.draw(scores), clusters), outcomes(data.draw(scores), clusters))
    outside = result.difference.low > 1e-9 or result.difference.high < -1e-9
    assert outside == (result.p < 0.05), result


def test_five_of_five_changed_items_are_no_proof():
    """A bootstrap of ten items that half were gained of never draws a loss; the exact test has p = 0.0625."""
    result = compare(outcomes([0] * 10), outcomes([1] * 5 + [0] * 5))
    assert (result.test, result.p) == ("exact McNemar", 0.0625)
    assert result.difference.low == 0.0
    assert result.difference.value == 0.5


@pytest.mark.parametrize("score", [1.5, -0.01, math.nan, math.inf])
def test_a_score_that_is_none_names_its_item(score):
    with pytest.raises(DataError, match=r"item 'seven': its score is .*; expected a number from 0 to 1"):
        Outcome("seven", score)


def test_compare_says_what_was_left_out_and_refuses_what_cannot_be_paired():
    a, b = vstar()
    result: Comparison = compare(a[:100], b[50:])
    assert (result.n, result.unmatched_a, result.unmatched_b) == (50, 50, 91)
    assert "141 items answered by one of them only are left out." in result.sentence()
    with pytest.raises(DataError, match="no item in common"):
        compare(a[:10], b[10:])
    with pytest.raises(DataError, match="item '3' occurs more than once in the results of B"):
        compare(a, [*b, b[3]])
    with pytest.raises(DataError, match="item '0' is in cluster '' of A but 'x' of B"):
        compare(a, [Outcome("0", 1.0, "x")])


def test_compare_without_any_difference():
    a, _ = vstar()
    same = compare(a, a)
    assert (same.p, same.difference.low, same.difference.high) == (1.0, 0.0, 0.0)
    shifted = compare(outcomes([0.25] * 10), outcomes([0.5] * 10))
    assert (shifted.test, shifted.p) == ("exact sign-flip", 2 / 2**10)
    assert (shifted.difference.low, shifted.difference.high) == pytest.approx((0.25, 0.25))
    many = compare(outcomes([0.25] * 30), outcomes([0.5] * 30))
    assert (many.test, many.p) == ("clustered t", 2 / 2**30), "no spread is no proof: p is that of the sign-flip test"


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="non-empty"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 scores but 1 cluster"):
        mean_interval([1, 0], ["a"])
    with pytest.raises(ValueError, match="seeds, tasks"):
        interquartile_mean_interval(np.zeros((0, 2)))
