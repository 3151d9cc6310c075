from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ral.data.record import Box
from ral.errors import DataError
from ral.testbed.rings import BACKGROUND, COLOURS, ring_records, ring_scenes


def test_the_same_seed_gives_the_same_scenes_and_a_longer_list_starts_with_a_shorter_one() -> None:
    assert ring_scenes(3, seed=7) == ring_scenes(9, seed=7)[:3]
    assert ring_scenes(3, seed=7) != ring_scenes(3, seed=8)


def test_seed_0_is_pinned() -> None:
    first = ring_records(1, seed=0)[0]
    assert (first.id, first.problem, first.solution, first.trace, first.boxes) == (
        "rings-0-0",
        "the red ring has which colour in it? <image>",
        "cyan",
        "row 1 col 1",
        (Box(1, 1, 15, 15),),
    )


@pytest.mark.parametrize(
    ("image_size", "rings", "grid"), [(64, 6, 4), (64, 1, 1), (56, 8, 3), (256, 8, 16), (84, 5, 4)]
)
def test_each_box_is_the_exact_extent_of_its_ring(image_size: int, rings: int, grid: int) -> None:
    for scene in ring_scenes(5, seed=1, image_size=image_size, rings=rings, grid=grid):
        pixels = np.asarray(scene.draw())
        assert pixels.shape == (image_size, image_size, 3)
        outside = np.ones(pixels.shape[:2], dtype=bool)
        for ring in scene.rings:
            box = scene.box(ring)
            y, x = slice(int(box.y0), int(box.y1)), slice(int(box.x0), int(box.x1))
            outside[y, x] = False
            patch = pixels[y, x]
            painted = (patch == COLOURS[ring.colour]).all(-1)
            disc = (patch == COLOURS[ring.inside]).all(-1)
            background = (patch == BACKGROUND).all(-1)
            assert (painted | disc | background).all()
            for edge in (painted[0], painted[-1], painted[:, 0], painted[:, -1]):
                assert edge.any(), "a smaller box would hold the ring"
            assert disc[len(disc) // 2, len(disc) // 2]
        assert (pixels[outside] == BACKGROUND).all()


def test_the_target_is_unique_and_the_record_tells_its_place_box_and_answer() -> None:
    for scene in ring_scenes(50, seed=2):
        record, target = scene.record(), scene.rings[scene.target]
        colours = [ring.colour for ring in scene.rings]
        assert len(set(colours)) == len({(ring.row, ring.col) for ring in scene.rings}) == 6
        assert [colour for colour in colours if f" {colour} ring" in record.problem] == [target.colour]
        assert record.solution == target.inside != target.colour
        assert record.trace == f"row {target.row} col {target.col}"
        assert record.boxes == (scene.box(target),)
        assert record.problem.endswith("<image>")
        assert isinstance(record.images[0], Image.Image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rings": 9}, "1 to 8 rings"),
        ({"rings": 0}, "1 to 8 rings"),
        ({"rings": 5, "grid": 2}, "1 to 4 rings"),
        ({"image_size": 65}, "multiple of 8 or 28"),
        ({"image_size": 56, "grid": 8}, "too small to draw"),
        ({"grid": 0}, "at least one row"),
        ({"n": 0}, "at least one record"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ring_records(**{"n": 1, "seed": 0, **settings})  # type: ignore[arg-type]
