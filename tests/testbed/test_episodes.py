from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ral.data.media import load_video
from ral.errors import DataError
from ral.testbed import episodes
from ral.testbed.episodes import (
    COLOURS,
    FPS,
    LEG,
    QUESTIONS,
    TILE,
    Thing,
    encode_video,
    episode_records,
    make_episode,
    told_records,
)


@pytest.fixture(autouse=True)
def _package(request: pytest.FixtureRequest) -> None:
    if "without_package" not in request.keywords:
        pytest.importorskip("minigrid")


def cell(frame: np.ndarray, thing: Thing) -> np.ndarray:
    box = thing.box(0)
    return frame[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)].astype(int)


def lies_in(frame: np.ndarray, thing: Thing) -> bool:
    """Whether the cell shows the thing's colour: the agent is red, an empty cell grey."""
    colour = {"green": (0, 255, 0), "blue": (0, 0, 255), "purple": (112, 39, 195), "yellow": (255, 255, 0)}
    # Keys and boxes are drawn in thin lines, which the video's subsampled colours darken.
    pixels = cell(frame, thing)
    return bool((np.abs(pixels - np.array(colour[thing.colour])).max(-1) < 90).any())


def test_the_same_seed_gives_the_same_episodes_and_a_longer_list_starts_with_a_shorter_one(tmp_path: Path) -> None:
    records = episode_records(6, 7, cache=tmp_path)
    assert episode_records(3, 7, cache=tmp_path) == records[:3]
    assert {r.videos for r in records}.isdisjoint({r.videos for r in episode_records(6, 8, cache=tmp_path)})


def test_the_video_is_written_once_whole_and_the_same_each_time(tmp_path: Path) -> None:
    [record] = episode_records(1, 0, cache=tmp_path / "a")
    [path] = record.videos
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    episode_records(1, 0, cache=tmp_path / "a")
    assert path.stat().st_mtime_ns == written
    [other] = episode_records(1, 0, cache=tmp_path / "b")[0].videos
    assert other.name == path.name
    assert other.read_bytes() == content
    assert [file.name for file in tmp_path.joinpath("a").iterdir()] == [path.name], "no temporary file is left"


def test_every_pick_up_is_seen_before_and_after_it_and_boxes_are_its_cell(tmp_path: Path) -> None:
    for index in range(12):
        episode = make_episode(f"t-{index}")
        frames = episode.frames()
        assert frames.shape == (LEG * len(episode.picked) - FPS + 1, 64, 64, 3)
        assert frames.dtype == np.uint8
        for place, thing in enumerate(episode.taken):
            assert lies_in(frames[place * LEG], thing)
            assert not any(lies_in(frame, thing) for frame in frames[place * LEG + 1 :])
            boxes = episode.boxes(place)
            assert [box.frame for box in boxes] == list(range(place * LEG, (place + 1) * LEG))[
                : len(frames) - place * LEG
            ]
            assert {(box.x0, box.y0, box.x1, box.y1) for box in boxes} == {
                ((thing.col - 1) * TILE, (thing.row - 1) * TILE, thing.col * TILE, thing.row * TILE)
            }
        for number, thing in enumerate(episode.things):
            assert number in episode.picked or lies_in(frames[-1], thing)


def test_the_agent_stands_before_what_it_picks_up() -> None:
    for index in range(12):
        episode = make_episode(f"t-{index}")
        for frame, thing in zip(episode.frames()[::LEG], episode.taken, strict=True):
            red = np.argwhere((frame[..., 0] > 200) & (frame[..., 1:] < 60).all(-1)).mean(0)
            centre = (np.array((thing.row, thing.col)) - 0.5) * TILE
            assert np.abs(red - centre).sum() == pytest.approx(TILE, abs=5), "a triangle beside it"


def test_at_one_frame_a_second_the_file_shows_the_frames_around_each_pick_up(tmp_path: Path) -> None:
    for index in range(4):
        episode = make_episode(f"t-{index}")
        video = load_video(episode.video(tmp_path), fps=1.0)
        assert video.fps == FPS
        assert video.indices == [i * FPS for i in range(2 * len(episode.picked))]
        assert video.times.tolist() == [float(i) for i in range(2 * len(episode.picked))]
        # Compression and half-resolution colour: close, not equal.
        assert np.abs(video.frames.astype(int) - episode.frames()[video.indices].astype(int)).mean() < 3
        for place, thing in enumerate(episode.taken):
            assert [lies_in(frame, thing) for frame in video.frames] == [
                i <= 2 * place for i in range(len(video.frames))
            ]


def test_questions_are_answered_by_what_happens(tmp_path: Path) -> None:
    for kind in QUESTIONS:
        for record in episode_records(8, 3, questions=[kind], cache=tmp_path):
            taken = make_episode(record.id).taken
            words = {"first": taken[0], "second": taken[1], "last": taken[-1]}
            asked = next((thing for word, thing in words.items() if f"picked up {word}?" in record.problem), None)
            if kind == "colour":
                assert asked is not None
                assert record.solution == asked.colour
            elif kind == "kind":
                assert asked is not None
                assert record.solution == asked.kind
            elif kind == "place":
                [asked] = [thing for thing in taken if f" {thing.colour} " in record.problem]
                assert record.solution == f"row {asked.row} col {asked.col}"
            else:
                assert record.solution.split() == [thing.colour for thing in taken]
            assert record.problem.endswith("? <video>")
            assert record.trace is not None
            assert [int(word) for word in record.trace.split() if word.isdigit()] == [
                n for thing in taken for n in (thing.row, thing.col)
            ]
            assert {(box.x0, box.y0) for box in record.boxes} == {
                (thing.box(0).x0, thing.box(0).y0) for thing in (taken if kind == "order" else [asked])
            }


def test_answers_are_balanced(tmp_path: Path) -> None:
    answers = [record.solution for record in told_records(400, 5, questions=["colour"])]
    assert all(70 < answers.count(colour) < 130 for colour in COLOURS)


def test_the_told_episode_asks_the_same_without_a_video(tmp_path: Path) -> None:
    shown, told = episode_records(5, 4, cache=tmp_path), told_records(5, 4)
    for one, other in zip(shown, told, strict=True):
        assert (other.solution, other.trace, other.videos, other.boxes) == (one.solution, one.trace, (), ())
        assert other.problem.startswith(one.problem.removesuffix(" <video>"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "at least one record"),
        ({"questions": ["why"]}, "choose from colour"),
        ({"questions": []}, "choose from colour"),
        ({"picks": [5]}, "choose from 2, 3"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        episode_records(**{"n": 1, "seed": 0, "cache": tmp_path, **settings})


def test_the_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "minigrid.core.grid", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[testbed\]'"):
        make_episode("t-0").frames()


def test_the_cache_lies_where_the_user_wants_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert episodes.cache_folder() == tmp_path / "ral" / "episodes"
    [record] = episode_records(1, 9)
    assert record.videos[0].parent == tmp_path / "ral" / "episodes"


def test_frames_survive_the_file() -> None:
    frames = make_episode("t-0").frames()
    assert encode_video(frames) == encode_video(frames)
