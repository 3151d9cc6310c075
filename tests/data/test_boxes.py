"""Boxes on grids of tokens: areas, halves of cells, and the patches of a video."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.data.boxes import box_coverage, box_mask, box_masks, place_on_patches, seen_boxes, tile_mask
from ral.data.record import Box
from ral.errors import DataError
from ral.families.cropped import centred
from ral.families.tiles import Tile


def test_coverage_on_cells_of_fractional_size():
    # A 2 x 3 grid on 100 x 50 pixels: cells of 33.33 x 25.
    coverage = box_coverage((2, 3), (100, 50), Box(50, 20, 70, 30))
    assert coverage == pytest.approx(np.array([[0, 0.1, 0.02], [0, 0.1, 0.02]]), abs=1e-12)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 640), st.integers(1, 640)),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_coverage_adds_up_to_the_area_of_the_box(grid, size, corners):
    (rows, columns), (width, height) = grid, size
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    if x1 - x0 < 1e-6 or y1 - y0 < 1e-6:
        return
    coverage = box_coverage(grid, size, Box(x0 * width, y0 * height, x1 * width, y1 * height))
    assert coverage.sum() == pytest.approx((x1 - x0) * (y1 - y0) * rows * columns, rel=1e-6, abs=1e-9)
    assert box_mask(grid, size, [Box(x0 * width, y0 * height, x1 * width, y1 * height)]).any()


def test_mask_takes_cells_covered_by_half_or_more():
    mask = box_mask((1, 4), (40, 10), [Box(5, 0, 24, 10)])  # halves of cells 0 and 1 whole, 0.4 of cell 2
    assert mask.tolist() == [[True, True, False, False]]


def test_mask_of_a_small_box_is_the_cells_it_covers_most():
    assert box_mask((2, 2), (20, 20), [Box(7, 2, 12, 4)]).tolist() == [[True, False], [False, False]]
    # On a corner it belongs to all four alike.
    assert box_mask((2, 2), (20, 20), [Box(9, 9, 11, 11)]).all()


def test_mask_is_the_union_and_boxes_are_cut_at_the_border():
    mask = box_mask((2, 3), (30, 20), [Box(-50, -50, 10, 10), Box(20, 10, 99, 99)])
    assert mask.tolist() == [[True, False, False], [False, False, True]]


@pytest.mark.parametrize("box", [Box(30, 0, 40, 10), Box(5, 5, 5, 9), Box(9, 0, 3, 9), Box(0, math.nan, 3, 9)])
def test_a_box_that_covers_nothing_is_refused_by_name(box):
    with pytest.raises(DataError, match=r"covers nothing of its 30x20 medium"):
        box_mask((2, 3), (30, 20), [box])


def test_every_grid_has_the_boxes_of_its_medium():
    first, second = box_masks([(1, 2), (2, 1)], [Box(0, 0, 5, 5, medium=1)], [(20, 10), (5, 10)])
    assert first.tolist() == [[False, False]]
    assert second.tolist() == [[True], [False]]


def test_boxes_of_a_video_go_to_the_patches_that_show_them():
    sampled = [0, 10, 20, 30, 40, 50]  # three patches of two frames
    boxes = [Box(0, 0, 1, 1, frame=30), Box(1, 1, 2, 2, frame=31), Box(2, 2, 3, 3)]
    placed = place_on_patches(boxes, sampled)
    assert [(box.x0, box.medium, box.frame) for box in placed] == [
        (0, 1, None),
        (2, 0, None),
        (2, 1, None),
        (2, 2, None),
    ]


@pytest.mark.parametrize("side", [1e-3, 1e-6, 1e-100])
def test_a_box_however_small_owns_the_cell_that_it_lies_in(side: float) -> None:
    assert box_mask((3, 4), (40, 30), [Box(0, 20, side, 20.5)]).nonzero() == ([2], [0])
    assert tile_mask([Tile(0, 3, 4)], [Box(0, 20, side, 20.5)], [(40, 30)]).nonzero()[0].tolist() == [8]


#: 4×4 tokens of the middle of a picture of 80×40, and of one of 30×70; the last tile is of a whole picture.
CROPPED = [Tile(0, 4, 4, centred(0.5, 1.0)), Tile(1, 4, 4, centred(1.0, 30 / 70)), Tile(2, 4, 4)]
SIZES = [(80, 40), (30, 70), (40, 40)]


@pytest.mark.parametrize(
    "box",
    [
        Box(0, 0, 19, 40), Box(62, 5, 80, 9), Box(10, 10, 20, 30), Box(60, 0, 80, 40),
        Box(0, 0, 30, 20, medium=1), Box(4, 50, 9, 70, medium=1),
    ],
)  # fmt: skip
def test_a_box_beyond_the_crop_is_no_box(box: Box) -> None:
    assert seen_boxes(CROPPED, [box], SIZES) == []
    assert not tile_mask(CROPPED, [box], SIZES).any()
    other = Box(0, 0, 10, 10, medium=2)
    assert seen_boxes(CROPPED, [box, other], SIZES) == [other]
    assert tile_mask(CROPPED, [box, other], SIZES).nonzero()[0].tolist() == [32]


def test_of_a_box_across_the_crops_edge_the_seen_part_counts() -> None:
    """Its hidden part covers no token, so that the sliver in sight owns the tokens that it covers most."""
    box = Box(0, 10, 22, 20)
    assert seen_boxes(CROPPED, [box], SIZES) == [Box(20, 10, 22, 20)]
    assert tile_mask(CROPPED, [box], SIZES).nonzero()[0].tolist() == [4]
    assert seen_boxes(CROPPED, [Box(25, 5, 50, 30)], SIZES) == [Box(25, 5, 50, 30)]


@pytest.mark.parametrize("width", [97, 101, 333, 641, 1003])
def test_a_box_that_ends_where_the_crop_begins_is_not_in_it(width: int) -> None:
    """The crop's edge is a rounded number, of which no sliver may be left."""
    left = (width - 60) / 2
    tiles = [Tile(0, 4, 4, centred(60 / width, 1.0))]
    assert seen_boxes(tiles, [Box(0, 0, left, 60), Box(left + 60, 0, width, 60)], [(width, 60)]) == []
    assert len(seen_boxes(tiles, [Box(left, 0, left + 60, 60)], [(width, 60)])) == 1


def test_on_a_larger_canvas_a_box_ends_with_the_picture() -> None:
    padded = [Tile(0, 4, 4, centred(1.0, 2.0))]
    assert seen_boxes(padded, [Box(-5, -9, 30, 99)], [(80, 40)]) == [Box(0, 0, 30, 40)]
    assert tile_mask(padded, [Box(-5, -9, 80, 99)], [(80, 40)]).reshape(4, 4).any(axis=1).tolist() == [
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(DataError, match="covers nothing of its 80x40 medium"):
        seen_boxes(padded, [Box(0, -19, 80, -1)], [(80, 40)])
    with pytest.raises(DataError, match="medium 1, but there are 1 pictures"):
        seen_boxes(padded, [Box(0, 0, 8, 8, medium=1)], [(80, 40)])
    with pytest.raises(DataError, match="1 pictures in the prompt but 2 sizes"):
        seen_boxes(padded, [], [(80, 40), (80, 40)])
