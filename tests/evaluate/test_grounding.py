from __future__ import annotations

import math

import numpy as np
import pytest

from ral.data.boxes import box_mask
from ral.data.record import Box
from ral.errors import DataError
from ral.evaluate.grounding import (
    Grounding,
    attention_sinks,
    control_mask,
    grounding,
    item_mask,
    mean_grounding,
    relative_attention,
)


def recipe(height: int, width: int, k: int) -> np.ndarray:
    """A map of distinct weights that any tool can rebuild from integers."""
    index = np.arange(height * width)
    return (((index * 7919 + k * 104729) % 1009) + 1.0).reshape(height, width) / 1009


# Computed with quantus 0.6.0: `evaluate_batch` of PointingGame, RelevanceMassAccuracy and AUC (normalise=False,
# abs=False) on `recipe(h, w, k)` and the mask of rows y0:y1, columns x0:x1. AttributionLocalisation gives the same mass
# but for the 1e-9 it adds to the denominator.
QUANTUS = [
    ((5, 8), 1, (2, 1, 6, 3), 1.0, 0.23335360291882032, 0.6015625),
    ((7, 3), 2, (0, 0, 1, 2), 0.0, 0.06878753753753754, 0.34210526315789475),
    ((4, 4), 3, (1, 3, 4, 4), 0.0, 0.11300639658848613, 0.30769230769230765),
    ((12, 20), 4, (3, 5, 17, 9), 0.0, 0.23055659320134478, 0.4920419254658385),
]


@pytest.mark.parametrize(("grid", "k", "cells", "pointing", "mass", "auc"), QUANTUS)
def test_agrees_with_quantus(grid, k, cells, pointing, mass, auc):
    height, width = grid
    x0, y0, x1, y1 = cells
    # Cells of 10 x 30 pixels: the medium and the grid have different shapes.
    box = Box(x0 * 10, y0 * 30, x1 * 10, y1 * 30)
    result = grounding(recipe(height, width, k), [box], (width * 10, height * 30), visual_share=0.25)
    assert result is not None
    assert result.pointing == pointing
    assert result.mass == pytest.approx(mass, abs=1e-12)
    assert result.auc == pytest.approx(auc, abs=1e-12)
    assert result.lift == pytest.approx(mass * height * width / ((x1 - x0) * (y1 - y0)), abs=1e-12)
    assert result.visual_share == 0.25


def test_scale_of_the_map_does_not_matter():
    first = grounding(recipe(5, 8, 1), [Box(0, 0, 4, 4)], (8, 5), 0.5)
    assert first == grounding(recipe(5, 8, 1) * 2.0**-20, [Box(0, 0, 4, 4)], (8, 5), 0.5)


def test_uniform_attention_scores_chance():
    result = grounding(np.ones((3, 4)), [Box(0, 0, 2, 1)], (4, 3), 1.0)
    assert result == Grounding(pointing=2 / 12, mass=2 / 12, lift=1.0, auc=0.5, visual_share=1.0)


def test_attention_wholly_in_the_box_is_perfect():
    attention = np.zeros((2, 6))
    attention[1, 4] = 3.0
    result = grounding(attention, [Box(4, 1, 5, 2)], (6, 2), 1.0)
    assert result == Grounding(pointing=1.0, mass=1.0, lift=12.0, auc=1.0, visual_share=1.0)


def test_several_images_share_one_ranking():
    maps = [np.full((2, 3), 0.1), np.array([[0.1, 0.7]])]
    boxes = [Box(5, 0, 10, 5, medium=1), Box(0, 0, 1, 1, medium=0)]
    result = grounding(maps, boxes, [(3, 2), (10, 5)], 0.9)
    assert result is not None
    assert result.pointing == 1.0
    assert result.mass == pytest.approx(0.8 / 1.4)
    assert result.lift == pytest.approx(0.8 / 1.4 / (2 / 8))
    assert result.auc == pytest.approx((6 + 6 * 0.5) / 12)


def test_maps_sizes_and_boxes_must_fit():
    maps = [np.ones((2, 3)), np.ones((2, 2))]
    with pytest.raises(DataError, match="2 attention maps but 1 media sizes"):
        item_mask(maps, [], (30, 20))
    with pytest.raises(DataError, match=r"medium 2, but there are 2"):
        item_mask(maps, [Box(0, 0, 1, 1, medium=2)], [(30, 20), (30, 20)])


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_maps_that_are_not_attention_are_refused(value):
    attention = np.ones((2, 2))
    attention[0, 1] = value
    with pytest.raises(ValueError, match="finite, non-negative and have mass"):
        grounding(attention, [Box(0, 0, 1, 1)], (2, 2), 1.0)
    with pytest.raises(ValueError, match="finite, non-negative and have mass"):
        grounding(np.zeros((2, 2)), [Box(0, 0, 1, 1)], (2, 2), 1.0)
    with pytest.raises(ValueError, match=r"grid \[h, w\]"):
        grounding(np.ones((1, 2, 2, 2)), [Box(0, 0, 1, 1)], (2, 2), 1.0)


def test_boxes_over_everything_leave_auc_undefined():
    result = grounding(np.ones((2, 2)), [Box(0, 0, 2, 2)], (2, 2), 1.0)
    assert result is not None
    assert math.isnan(result.auc)
    assert result.as_dict()["auc"] is None
    assert result.as_dict()["mass"] == 1.0


def test_mean_leaves_out_items_without_boxes_and_counts_them():
    none = grounding(np.ones((2, 2)), [], (2, 2), 1.0)
    everywhere = grounding(np.ones((2, 2)), [Box(0, 0, 2, 2)], (2, 2), 0.5)
    corner = grounding(np.array([[3.0, 1.0], [1.0, 1.0]]), [Box(0, 0, 1, 1)], (2, 2), 0.1)
    result = mean_grounding([none, everywhere, corner])
    assert (result.n, result.without_boxes) == (2, 1)
    assert result.mean == Grounding(pointing=1.0, mass=0.75, lift=1.5, auc=1.0, visual_share=0.3)
    empty = mean_grounding([none])
    assert (empty.mean, empty.n, empty.without_boxes) == (None, 0, 1)


def test_ignored_tokens_leave_attention_and_boxes():
    attention = np.array([[8.0, 1.0, 1.0]])
    sink = np.array([[True, False, False]])
    box = Box(1, 0, 2, 1)
    with_sink, without = (grounding(attention, [box], (3, 1), 1.0, ignore=mask) for mask in (None, sink))
    assert with_sink is not None
    assert without is not None
    assert (with_sink.pointing, with_sink.mass, with_sink.lift) == (0.0, 0.1, pytest.approx(0.3))
    assert (without.pointing, without.mass, without.lift) == (0.5, 0.5, 1.0)
    assert grounding(attention, [Box(0, 0, 1, 1)], (3, 1), 1.0, ignore=sink) is None


def test_sinks_are_tokens_attended_whatever_is_asked():
    queries = np.full((4, 3, 5), 0.01)
    queries[:, 0, 4] = 0.5  # in every query
    queries[0, 2, 2] = 0.5  # what query 0 looks for
    queries[:3, 1, 1] = 0.2  # in three of four
    expected = np.zeros((3, 5), dtype=bool)
    expected[0, 4] = expected[1, 1] = True
    assert (attention_sinks(queries) == expected).all()
    with pytest.raises(ValueError, match="queries, h, w"):
        attention_sinks(queries[0])


def test_relative_attention_cancels_what_is_always_attended():
    neutral = np.array([[0.7, 0.1, 0.1, 0.1]])
    asked = neutral * [[1.0, 1.0, 4.0, 1.0]]
    assert relative_attention(asked, neutral) == pytest.approx(np.array([[1, 1, 4, 1]]) / 7)
    # A token that the neutral prompt ignores entirely does not become infinite.
    assert np.isfinite(relative_attention([[0.5, 0.5]], [[1.0, 0.0]])).all()
    with pytest.raises(ValueError, match="same image"):
        relative_attention(asked, neutral.T)


def test_control_has_the_size_of_the_box_and_misses_it():
    mask = box_mask((5, 8), (8, 5), [Box(2, 1, 6, 3)])
    control = control_mask(mask, np.random.default_rng(0))
    assert control.shape == mask.shape
    assert control.sum() == mask.sum() == 8
    assert not (control & mask).any()
    with pytest.raises(ValueError, match="no control"):
        control_mask(np.ones((2, 2)), np.random.default_rng(0))
    shown = np.zeros((5, 8), dtype=bool)
    shown[:, :4] = True
    drawn = [control_mask(mask, np.random.default_rng(seed), shown) for seed in range(20)]
    assert all(one.sum() == 8 and not (one & (mask | ~shown)).any() for one in drawn)
    assert np.any(drawn, axis=0).sum() == 16, "all of the shown tokens beside the box are drawn from"
    with pytest.raises(ValueError, match="no control"):
        control_mask(mask, np.random.default_rng(0), mask)
