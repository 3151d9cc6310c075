"""What a model is shown of a record, image by image and patch by patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral.data.record import Box, Record
from ral.data.shown_media import shown_media
from ral.testbed import load_start
from ral.testbed.episodes import LEG, episode_records, make_episode


def test_a_view_has_a_picture_for_every_map_and_the_boxes_of_what_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    [record] = episode_records(1, 0, picks=[3], cache=tmp_path)
    _, processor = load_start()
    image = Image.new("RGB", (30, 30))
    both = Record("b", "?", "", images=(image,), videos=record.videos, boxes=(Box(0, 0, 9, 9), *(
        Box(b.x0, b.y0, b.x1, b.y1, medium=1, frame=b.frame) for b in record.boxes)))  # fmt: skip
    found = shown_media(both, processor, fps=1.0)
    assert [picture.size for picture in found.pictures] == [(30, 30), *[(64, 64)] * 3]
    assert (found.media, found.times) == ((range(1), range(1, 4)), (None, 0.0, 2.0, 4.0))
    patch = record.boxes[0].frame // LEG
    assert {box.medium for box in found.boxes} == {0, 1 + patch}
    frames = make_episode(record.id).frames()
    for number, time in enumerate((0, LEG, 2 * LEG), start=1):
        assert np.abs(np.asarray(found.pictures[number]).astype(int) - frames[time]).mean() < 5
