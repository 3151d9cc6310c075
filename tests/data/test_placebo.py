"""Placebo boxes: the same size, elsewhere, and nothing that depends on anything but the box and the record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ral.data.boxes import box_coverage, box_mask
from ral.data.placebo import MOVES, borrowed, keeps, moved
from ral.data.record import Box

SIZES = [(100, 60), (64, 64)]
#: All of each.
PARTS = [(0.0, 0.0, 100.0, 60.0), (0.0, 0.0, 64.0, 64.0)]
FINE = [(1.0, 1.0), (1.0, 1.0)]
BOXES = [Box(10, 5, 30, 25), Box(50, 30, 64, 64, medium=1), Box(0, 20, 100, 40)]


@pytest.mark.parametrize("control", sorted(MOVES))
def test_a_moved_box_keeps_its_size_and_stays_inside(control: str) -> None:
    for key in map(str, range(20)):
        for box, other in zip(BOXES, moved(BOXES, PARTS, FINE, control, key), strict=True):
            assert (other.x1 - other.x0, other.y1 - other.y0) == pytest.approx((box.x1 - box.x0, box.y1 - box.y0))
            width, height = SIZES[box.medium]
            assert other.medium == box.medium
            assert other.x0 >= -1e-9
            assert other.x1 <= width + 1e-9
            assert other.y0 >= -1e-9
            assert other.y1 <= height + 1e-9
    assert moved(BOXES, PARTS, FINE, control, "a") == moved(BOXES, PARTS, FINE, control, "a")


@settings(deadline=None)
@given(
    control=st.sampled_from(sorted(MOVES)),
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(20, 900), st.integers(20, 900)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    key=st.text(max_size=3),
)
def test_a_moved_box_lies_on_as_many_tokens_as_the_true_one(
    control: str, grid: tuple[int, int], size: tuple[int, int], corners: tuple[float, ...], key: str
) -> None:
    """Boxes of any size on grids of any size: the cells that they cover are the same, moved by whole tokens."""
    (rows, columns), (width, height) = grid, size
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    assume(x1 - x0 > 1e-3)
    assume(y1 - y0 > 1e-3)
    box = Box(x0 * width, y0 * height, x1 * width, y1 * height)
    [other] = moved([box], [(0.0, 0.0, width, height)], [(width / columns, height / rows)], control, key)
    before, after = (box_coverage(grid, size, one) for one in (box, other))
    assert np.sort(before, axis=None) == pytest.approx(np.sort(after, axis=None), abs=1e-6)
    assert np.count_nonzero(box_mask(grid, size, [box])) == np.count_nonzero(box_mask(grid, size, [other]))


def test_a_control_that_falls_between_tokens_goes_to_the_nearest() -> None:
    parts, cells = PARTS[:1], [(10.0, 20.0)]
    # Rolled: x 15 + 40 and y 4 + 20, of free ways 80 and 40. Centre: x 40 and y 20, of which whole tokens leave 35 and 24.
    [rolled], [centre] = (moved([Box(15, 4, 35, 24)], parts, cells, name, "a") for name in ("rolled", "centre"))
    assert rolled == Box(55, 24, 75, 44)
    assert centre in (Box(35, 24, 55, 44), Box(45, 24, 65, 44))
    assert moved([Box(15, 4, 35, 24)], [(0.0, 0.0, 36.0, 25.0)], cells, "rolled", "a") == [Box(5, 4, 25, 24)], (
        "one token to the left"
    )


def test_each_control_goes_where_it_says() -> None:
    centre, rolled = (moved(BOXES, PARTS, FINE, control, "a") for control in ("centre", "rolled"))
    assert centre[0] == Box(40, 20, 60, 40)
    assert rolled[0] == Box(50, 25, 70, 45)  # half of the free way, 80 and 40, further on
    assert rolled[1] == Box(25, 15, 39, 49, medium=1)  # and around: 50 and 30 are the whole free way
    assert rolled[2].x0 == 0  # as wide as the image: it can move up and down alone
    drawn = {moved(BOXES[:1], PARTS, FINE, "random", str(key))[0].x0 for key in range(50)}
    assert len(drawn) > 30
    assert min(drawn) < 10
    assert max(drawn) > 70
    near = [moved(BOXES[:1], PARTS, FINE, "noisy", str(key))[0] for key in range(50)]
    assert all(abs(box.x0 - 10) <= 20 and abs(box.y0 - 5) <= 20 for box in near)


def test_a_box_of_a_video_moves_alike_in_all_its_pictures() -> None:
    boxes = [Box(1, 2, 9, 9, medium=medium) for medium in range(3)]
    found = moved(boxes, [(0.0, 0.0, 50.0, 50.0)] * 3, [(5.0, 5.0)] * 3, "random", "clip")
    assert len({(box.x0, box.y0) for box in found}) == 1


def test_borrowed_boxes_stand_at_the_same_shares() -> None:
    assert borrowed(BOXES[:2], SIZES, [(200, 30)]) == [Box(20, 2.5, 60, 12.5), Box(156.25, 14.0625, 200, 30)]


def test_half_of_the_records_keep_theirs() -> None:
    kept = [keeps(f"rings-1-{number}") for number in range(400)]
    assert sum(kept) == pytest.approx(200, abs=40)


@pytest.mark.parametrize("control", sorted(MOVES))
def test_in_a_picture_that_is_cropped_a_box_moves_within_the_crop(control: str) -> None:
    """As it would in a picture that ends there: the same distances, in whole tokens of 4×5."""
    box, inside = Box(20, 5, 32, 15), Box(10, 5, 22, 15)
    for key in map(str, range(20)):
        [x] = moved([box], [(10.0, 0.0, 70.0, 40.0)], [(4.0, 5.0)], control, key)
        assert x.x0 >= 10
        assert x.x1 <= 70
        assert (x.x1 - x.x0, x.y1 - x.y0) == (12, 10)
        assert (x.x0 - box.x0) % 4 == (x.y0 - box.y0) % 5 == 0
    if control in ("centre", "rolled"):
        [x] = moved([box], [(10.0, 0.0, 70.0, 40.0)], [(4.0, 5.0)], control, "a")
        [y] = moved([inside], [(0.0, 0.0, 60.0, 40.0)], [(4.0, 5.0)], control, "a")
        assert (x.x0 - 10, x.y0) == (y.x0, y.y0)
