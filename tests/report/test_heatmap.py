from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral.report import render_heatmap_html, render_heatmap_png
from ral.report.heatmap import MAX_SIDE, picture, shares, tile

WIDE = np.full((60, 120, 3), 200, dtype=np.uint8)


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_shares_sum_to_one_and_keep_the_shape() -> None:
    grid = shares([[1, 3, 0], [0, 4, -2]])
    np.testing.assert_allclose(grid, [[0.125, 0.375, 0], [0, 0.5, 0]])
    assert shares(np.zeros((2, 2))).sum() == 0


@pytest.mark.parametrize("values", [[1.0, 2.0], np.zeros((0, 3)), [[1.0, float("nan")]]])
def test_shares_refuses_what_is_no_map(values: object) -> None:
    with pytest.raises(ValueError, match="expected a finite matrix"):
        shares(values)  # type: ignore[arg-type]


def test_a_tile_has_one_pixel_per_token_and_is_brightest_where_most_is_attended() -> None:
    grid = shares([[0, 1, 0, 0], [0, 0, 9, 0]])
    shown = tile(Image.fromarray(WIDE), grid, [(30, 30, 60, 200)])
    assert (shown.width, shown.height) == (120, 60)
    heat, veil = pixels(shown.heat or ""), pixels(shown.veil or "")
    assert heat.shape == veil.shape == (2, 4, 4)
    assert np.unravel_index(heat[..., 0].astype(int).argmax(), (2, 4)) == (1, 2)
    assert veil[1, 2, 3] == 0, "the most attended token is not darkened"
    assert shown.boxes == [(30, 30, 30, 30)], "a box is cut to the image"


def test_tiles_with_a_common_peak_share_one_scale() -> None:
    sharp, flat = shares(np.eye(2)), shares(np.ones((2, 2)))
    image = Image.fromarray(WIDE)
    common = pixels(tile(image, flat, [], peak=float(sharp.max())).heat or "")
    assert common[0, 0, 0] < pixels(tile(image, flat, []).heat or "")[0, 0, 0]


@pytest.mark.parametrize("box", [(1, 2, 3), (5, 5, 5, 9), (300, 0, 400, 10), (0, 0, float("nan"), 3), ("a", 0, 1, 1)])
def test_what_is_no_box_inside_the_image_is_not_drawn(box: tuple) -> None:
    assert tile(Image.fromarray(WIDE), None, [box]).boxes == []


def test_large_pictures_are_shrunk() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 2000, 3), dtype=np.uint8)
    assert max(pixels(picture(Image.fromarray(noise))).shape[:2]) == MAX_SIDE


def test_png_of_a_wide_image_with_awkward_text(tmp_path: Path) -> None:
    path = render_heatmap_png(
        WIDE, np.ones((3, 6)), [(0, 0, 20, 20)], tmp_path / "map.png",
        title="costs $5 or $\\frac{1}{0}$ \ud800 " + "long " * 60, caption="a\x00b\n" * 40,
    )  # fmt: skip
    with Image.open(path) as written:
        assert written.width > written.height


def test_html_is_one_file_with_the_text_escaped(tmp_path: Path) -> None:
    path = render_heatmap_html(
        WIDE, np.ones((3, 6)), [(0, 0, 20, 20)], tmp_path / "map.html",
        question="<script>alert(1)</script>", completion='"><img onerror=alert(1) src=x>', facts=[("<b>", "\ud800")],
    )  # fmt: skip
    text = path.read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "<img" not in text
    assert "http:" not in text
    assert "https:" not in text
