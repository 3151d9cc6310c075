"""Films as sheets: every frame, box and map at its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ral.cli import app
from ral.data.record import Box, Record
from ral.data.shown_media import ShownMedia
from ral.evaluate.answering import glance
from ral.evaluate.items import read_items
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.sheets import sheet, sheet_map
from ral.evaluate.tasks import Task
from ral.evaluate.tasks.testbed import named
from ral.report.artefacts import Evaluation, Run
from ral.report.experiment import Arm
from ral.report.gallery import build_gallery
from ral.testbed import load_start
from ral.testbed.episodes import episode_records

SETTINGS = EvalSettings(template="plain", max_completion_length=8, fps=1.0)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    pytest.importorskip("minigrid")
    return episode_records(1, 0, picks=[3], cache=tmp_path_factory.mktemp("episodes"))[0]


def plain(count: int, boxes: tuple[Box, ...] = ()) -> ShownMedia:
    """`count` frames of 20×10 pixels, each of one shade of grey."""
    pictures = tuple(Image.new("RGB", (20, 10), (10 * i,) * 3) for i in range(count))
    times = tuple(float(i) for i in range(count))
    return ShownMedia(pictures, boxes, (range(count),), times, ((20, 10),) * count)


@pytest.mark.parametrize(("count", "size"), [(1, (20, 10)), (3, (60, 10)), (4, (80, 10)), (6, (80, 20))])
def test_frames_boxes_and_maps_stand_at_the_same_places(count: int, size: tuple[int, int]) -> None:
    boxes = tuple(Box(5, 2, 10, 8, medium=i) for i in range(count))
    whole = sheet(plain(count, boxes), range(count))
    assert whole.picture.size == size
    assert whole.times == [float(i) for i in range(count)]
    maps = [np.arange(6.0).reshape(2, 3) + 10 * i for i in range(count)]
    values = sheet_map(maps)
    assert values.sum() == sum(map_.sum() for map_ in maps)
    cell = (size[1] // values.shape[0], size[0] / values.shape[1])
    for i, (x0, y0, x1, y1) in enumerate(whole.boxes):
        assert (x1 - x0, y1 - y0) == (5, 6)
        assert whole.picture.getpixel((int(x0), int(y0))) == (10 * i,) * 3
        row, column = round((y0 - 2) / cell[0]), round((x0 - 5) / cell[1])
        assert np.array_equal(values[row : row + 2, column : column + 3], maps[i])


def test_a_glance_at_a_video_has_a_map_for_every_temporal_patch(record: Record) -> None:
    model, processor = load_start()
    seen = glance(model, processor, record.problem, SETTINGS, video=record.videos[0])
    assert seen.sheet.picture.size == (192, 64)
    assert seen.sheet.times == [0.0, 2.0, 4.0]
    assert seen.map.shape == (8, 24)
    assert seen.map.sum() == pytest.approx(seen.layer.visual_share)
    with pytest.raises(ValueError, match="one image or one video"):
        glance(model, processor, "?", SETTINGS)


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_ral_look_draws_a_video(record: Record, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"look{suffix}"
    words = ["look", "start", "--video", str(record.videos[0]), "--question", record.problem, "--output", str(output)]
    found = CliRunner().invoke(app, [*words, "--template", "plain", "--fps", "1", "--max-completion-length", "8"])
    assert found.exit_code == 0, found.output
    if suffix == ".png":
        assert Image.open(output).size[0] > 600
    else:
        page = output.read_text(encoding="utf-8")
        assert "0.0, 2.0, 4.0 s" in page
        assert "&lt;video&gt;" not in page
        assert "8 × 24" in page


def test_ral_look_wants_one_medium(tmp_path: Path) -> None:
    words = ["look", "start", "--question", "?", "--output", str(tmp_path / "a.png"), "--template", "plain"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "one image or one video" in found.stderr


def test_the_gallery_says_when_the_frames_of_a_video_are(record: Record, tmp_path: Path) -> None:
    model, processor = load_start()
    task = Task("episodes", lambda table=None, media=None: iter([record]), named)
    evaluate(model, processor, task, tmp_path, settings=SETTINGS)
    items = {item.id: item for item in read_items(tmp_path / "items.jsonl")}
    evaluation = Evaluation("episodes", tmp_path, {}, items)
    arm = Arm("one", "One", [Run(tmp_path, evaluations={"episodes": evaluation})])
    [exhibit] = build_gallery([arm], "episodes").exhibits
    assert exhibit.frames == "0.0, 2.0, 4.0"
    [look] = exhibit.looks
    assert look.tile is not None
    assert (look.tile.width, look.tile.height) == (192, 64)
    assert len(look.tile.boxes) == 1
