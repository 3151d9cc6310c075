"""The mixture of Gaussians on boxes, against its formula at the centres of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from ral.data.box_density import tile_density
from ral.data.record import Box
from ral.families.cropped import centred
from ral.families.tiles import Tile


def test_it_is_the_mean_of_the_boxes_gaussians_and_a_background() -> None:
    boxes, size = [Box(10, 10, 50, 30), Box(60, 0, 80, 40)], (80, 40)
    found = tile_density([Tile(0, 4, 8)], boxes, [size], sigma=0.25, background=0.1)
    assert found is not None
    expected = np.zeros(32)
    for box in boxes:
        spot = np.zeros((4, 8))
        for row in range(4):
            for column in range(8):
                x, y = (column + 0.5) * 10, (row + 0.5) * 10
                dx = (x - (box.x0 + box.x1) / 2) / (0.25 * (box.x1 - box.x0))
                dy = (y - (box.y0 + box.y1) / 2) / (0.25 * (box.y1 - box.y0))
                spot[row, column] = np.exp(-0.5 * (dx**2 + dy**2))
        expected += 0.9 * spot.ravel() / spot.sum() / 2
    np.testing.assert_allclose(found, expected + 0.1 / 32)
    assert found.sum() == pytest.approx(1)


def test_a_box_smaller_than_a_token_has_its_nearest_token() -> None:
    found = tile_density([Tile(0, 8, 8)], [Box(17, 33, 17.5, 33.5)], [(64, 64)], sigma=0.25, background=0.0)
    assert found is not None
    assert found.argmax() == 4 * 8 + 2
    assert found[4 * 8 + 2] == pytest.approx(1)


def test_other_pictures_and_newlines_have_the_background_alone() -> None:
    tiles = [Tile(0, 2, 2), Tile(1, 2, 2, (0.0, 0.0, 0.5, 1.0), newline=True), Tile(1, 2, 2, (0.5, 0.0, 1.0, 1.0))]
    found = tile_density(tiles, [Box(0, 0, 10, 10, medium=1)], [(20, 20), (20, 20)], sigma=0.25, background=0.2)
    assert found is not None
    assert len(found) == 14
    np.testing.assert_allclose(found[[0, 1, 2, 3, 6, 9]], 0.2 / 14)
    assert found.argmax() in (4, 5)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("box", [Box(0, 33, 1e-200, 34), Box(0, 38, 1e-8, 39), Box(0, 35, 1e-3, 35 + 1e-12)])
@pytest.mark.filterwarnings("error")
def test_a_box_without_width_has_its_nearest_token_too(box: Box) -> None:
    found = tile_density([Tile(0, 8, 8)], [box], [(64, 64)], sigma=0.25, background=0.1)
    assert found is not None
    assert found.argmax() == 4 * 8
    assert found[32] == pytest.approx(0.9 + 0.1 / 64)


def test_what_is_beyond_the_picture_or_its_crop_is_cut_off_as_in_the_mask() -> None:
    whole, crop, size = [Tile(0, 8, 8)], [Tile(0, 8, 8, centred(0.5, 1.0))], [(80, 40)]

    def density(tiles: list[Tile], *boxes: Box) -> np.ndarray:
        found = tile_density(tiles, boxes, size, sigma=0.25, background=0.1)
        assert found is not None
        return found

    np.testing.assert_array_equal(density(whole, Box(-70, -9, 30, 20)), density(whole, Box(0, 0, 30, 20)))
    np.testing.assert_array_equal(density(crop, Box(-70, 9, 30, 20)), density(crop, Box(20, 9, 30, 20)))
    hidden, seen = Box(1, 1, 19, 9), Box(30, 10, 50, 30)
    np.testing.assert_array_equal(density(crop, hidden, seen), density(crop, seen))
    assert tile_density(crop, [hidden], size, sigma=0.25, background=0.1) is None


def test_padding_has_the_background_alone() -> None:
    found = tile_density([Tile(0, 8, 8, centred(1.0, 2.0))], [Box(0, 0, 80, 6)], [(80, 40)], sigma=0.5, background=0.2)
    assert found is not None
    rows = found.reshape(8, 8)
    np.testing.assert_allclose(rows[[0, 1, 6, 7]], 0.2 / 64)
    assert rows[2].sum() > 0.8
    assert found.sum() == pytest.approx(1)
