"""What a model is shown of a record, image by image and patch by patch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral.data import media as media_module
from ral.data.boxes import box_mask
from ral.data.check import check_records
from ral.data.record import Box, Record
from ral.data.settings import PromptSettings
from ral.data.shown_media import shown_media
from ral.evaluate.sheets import sheet
from ral.testbed import load_start
from ral.testbed.episodes import LEG, episode_records, make_episode
from tests.data.conftest import write_video


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


@pytest.mark.parametrize("shrink", [1, 2, 3, 7])
def test_boxes_stay_where_they_are_on_clips_that_are_scaled_down(
    shrink: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box counts pixels of the file, whatever size the frames are decoded at; the sheet has its own pixels."""
    path, (_, processor) = write_video(tmp_path / "a.mp4", frames=20, size=(160, 96)), load_start()
    box = Box(80, 24, 120, 96)
    record = Record("v", "<video>?", "", videos=(path,), boxes=(box,), origin="row 2")
    monkeypatch.setattr(media_module, "MAX_CLIP_PIXELS", 8 * 160 * 96 // shrink**2)
    found = shown_media(record, processor, num_frames=8)
    assert found.pictures[0].size == pytest.approx((160 / shrink, 96 / shrink), abs=1)
    assert found.sizes == ((160, 96),) * 4
    mask = box_mask((4, 8), found.sizes[2], [one for one in found.boxes if one.medium == 2])
    assert mask.nonzero()[0].tolist() == [1, 1, 2, 2, 3, 3]
    assert mask.nonzero()[1].tolist() == [4, 5] * 3
    whole = sheet(found, found.media[0])
    width, height = whole.picture.size[0] / 4, whole.picture.size[1]
    for number, (x0, y0, x1, y1) in enumerate(whole.boxes):
        shares = (x0 / width - number, y0 / height, x1 / width - number, y1 / height)
        assert shares == pytest.approx((0.5, 0.25, 0.75, 1))
    beyond = replace(record, id="w", boxes=(Box(161, 0, 170, 90),))
    settings = PromptSettings(num_frames=8)
    report = check_records(lambda on_error: [record, beyond], prompt=settings)
    assert [(finding.kind, finding.message[:38]) for finding in report.findings if finding.kind == "box"] == [
        ("box", "row 2: box (161, 0, 170, 90) covers no")
    ]
