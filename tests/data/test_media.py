from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ral.data import media as module
from ral.data.media import frame_times, load_image, load_video
from ral.errors import DataError
from tests.data.conftest import picture


@pytest.mark.parametrize(
    ("settings", "frames"),
    [
        ({"num_frames": 5}, [0, 12, 24, 36, 49]),
        ({"fps": 2.0}, [0, 5, 10, 16, 21, 27, 32, 38, 43, 49]),
        ({"fps": 2.0, "num_frames": 4}, [0, 16, 32, 49]),
        ({"num_frames": 1}, [0]),
        ({"num_frames": 999}, list(range(50))),
    ],
)
def test_frames_are_those_on_screen_at_evenly_spaced_times(
    media: Path, settings: dict[str, float], frames: list[int]
) -> None:
    video = load_video(media / "clip.mp4", **settings)  # type: ignore[arg-type]
    assert video.frames.shape == (len(frames), 64, 96, 3)
    assert video.indices == frames
    np.testing.assert_allclose(video.times, [n / 10 for n in frames], atol=1e-6)
    np.testing.assert_allclose(video.frames[:, 0, 0, 0], [5 * n for n in frames], atol=4)
    assert video.duration == pytest.approx(5.0)


def test_a_clip_that_would_fill_the_memory_is_scaled_down(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIP_PIXELS", 50 * 96 * 64 // 4)
    assert load_video(media / "clip.mp4", num_frames=50).frames.shape == (50, 32, 48, 3)


@given(st.floats(0.01, 1e5), st.integers(1, 10**6), st.none() | st.integers(1, 999), st.none() | st.floats(0.01, 60))
def test_frame_times_stay_inside_the_video(duration: float, total: int, count: int | None, fps: float | None) -> None:
    times = frame_times(duration, total, count, fps)
    assert 1 <= len(times) <= min(total, count or module.MAX_FRAMES)
    last = duration - duration / total
    assert times[0] == 0
    assert times[-1] == pytest.approx(last if len(times) > 1 else 0)
    np.testing.assert_allclose(np.diff(times), last / max(1, len(times) - 1), rtol=1e-6)


@pytest.mark.parametrize(("total", "count"), [(300, 16), (301, 7), (50, 50), (2, 2), (1000, 3)])
def test_frames_are_those_of_lmms_eval(total: int, count: int) -> None:
    """`np.linspace(0, total - 1, count, dtype=int)`, at any rate."""
    for rate in (7.0, 24000 / 1001, 30.0):
        numbers = np.floor(frame_times(total / rate, total, count, None) * rate + 1e-6)
        assert numbers.tolist() == np.linspace(0, total - 1, count, dtype=int).tolist()
        assert len(frame_times(total / rate, total, None, rate / total * 2.5)) == 2


def test_images_are_turned_as_their_exif_tag_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    picture(3).convert(mode).save(path)
    assert load_image(path).mode == "RGB"


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_broken_media_are_named_and_never_replaced(tmp_path: Path, media: Path) -> None:
    (tmp_path / "cut.png").write_bytes((media / "a.png").read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("no image")
    clip = (media / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    (tmp_path / "text.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    (tmp_path / "image.mp4").write_bytes((media / "a.png").read_bytes())
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "vector.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("cut.png", "text.jpg", "missing.png", "pipe.png", "vector.png"):
        with pytest.raises(DataError, match=rf"^data:3: image .*{name}"):
            load_image(tmp_path / name, "data:3")
    for name in ("cut.mp4", "text.mp4", "image.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(DataError, match=rf"^data:3: video .*{name}"):
            load_video(tmp_path / name, origin="data:3")


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"30000×30000|cannot be decoded"):
        load_image(tmp_path / "bomb.png")
