from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ral.data import media as module
from ral.data.media import frame_times, image_from_bytes, load_image, load_video
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
    video = load_video(media / "clip.mp4", num_frames=50)
    assert video.frames.shape == (50, 32, 48, 3)
    assert video.size == (96, 64)


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


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_images_are_turned_as_their_exif_tag_says(mode: str, suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste("white", (0, 0, 40, 4))  # a bright top edge
    exif = image.getexif()
    for orientation, edge in ((3, np.s_[-4:]), (6, np.s_[:, -4:]), (8, np.s_[:, :4])):
        exif[0x0112] = orientation
        image.convert(mode).save(tmp_path / f"a.{suffix}", exif=exif)
        found = np.asarray(load_image(tmp_path / f"a.{suffix}")).mean(-1)
        assert found.shape == ((20, 40) if orientation == 3 else (40, 20))
        assert found[edge].min() > 180
        assert found.sum() == pytest.approx(found[edge].sum(), rel=0.1)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "bmp", "tif", "ppm", "jp2", "avif", "mpo"])
def test_every_listed_format_is_read_from_file_and_from_bytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    picture(3).save(path)
    for found in (load_image(path), load_image(image_from_bytes(path.read_bytes()))):
        assert np.abs(np.asarray(found).astype(int) - np.asarray(picture(3))).mean() < (20 if suffix == "gif" else 5)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    picture(3).convert(mode).save(path)
    assert load_image(path).mode == "RGB"


RAMP = np.linspace(0, 1, 30 * 20).reshape(30, 20)


def deep(dtype: str, white: float = 65535) -> Image.Image:
    return Image.fromarray((RAMP * white).astype(dtype))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", deep("<u2")),
        ("a.tif", deep("<u2")),
        ("big-endian.tif", deep(">u2")),
        ("wide.tif", deep("i4")),
        ("a.jp2", deep("<u2")),
        ("unit.tif", deep("f4", 1.0)),
        ("dark.tif", deep("f4", 0.5)),
        ("memory", deep("i4")),
        ("memory", deep("f4", 1.0)),
    ],
)
def test_deep_grey_is_scaled_to_eight_bits(name: str, image: Image.Image, tmp_path: Path) -> None:
    if name != "memory":
        image.save(tmp_path / name)
    found = load_image(image if name == "memory" else tmp_path / name)
    expected = RAMP * 255 * (0.5 if name == "dark.tif" else 1)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found) - expected[..., None]).max() <= 1


def test_a_portable_grey_map_has_the_scale_that_it_names(tmp_path: Path) -> None:
    content = b"P5\n20 30\n4095\n" + (RAMP * 4095).astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(content)
    assert np.abs(np.asarray(load_image(tmp_path / "a.pgm"))[..., 0] - RAMP * 255).max() <= 1


def tiff(values: NDArray[np.integer], bits: int, sample_format: int, tmp_path: Path) -> Path:
    """A grey TIFF of one strip, whose tags name the bits of a value and what they stand for."""
    height, width = values.shape
    pixels = values.astype("<i2").tobytes()
    if bits == 12:  # two values in three bytes
        first, second = values.reshape(-1, 2).T
        three = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
        pixels = three.astype(np.uint8).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, len(pixels)),
            (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path = tmp_path / "a.tif"
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    return path


@pytest.mark.parametrize(
    ("bits", "sample_format", "white"), [(16, 1, 65535), (16, 2, 32767), (12, 1, 4095)], ids=["plain", "signed", "12"]
)
def test_a_tiff_has_the_scale_that_its_tags_name(bits: int, sample_format: int, white: int, tmp_path: Path) -> None:
    path = tiff((RAMP * white).round().astype(np.int64), bits, sample_format, tmp_path)
    assert np.abs(np.asarray(load_image(path))[..., 0] - RAMP * 255).max() <= 1
    dark = tiff((RAMP * 100).round().astype(np.int64), bits, sample_format, tmp_path)
    assert np.asarray(load_image(dark)).max() == round(100 / white * 255)


def test_a_signed_tiff_with_values_below_zero_is_refused(tmp_path: Path) -> None:
    path = tiff((RAMP * 1000).astype(np.int64) - 500, 16, 2, tmp_path)
    with pytest.raises(DataError, match="integers from -500 to 500, of no known scale"):
        load_image(path)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (deep("i4", 255), "integers from 0 to 255"),
        (deep("i4", 1 << 24), "integers from 0 to 1.67772e.07"),
        (deep("f4", 255.0), r"from 0 to 255; scale them to \[0, 1\]"),
        (Image.fromarray(np.full((4, 4), -0.1, np.float32)), "from -0.1"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "nan"),
    ],
    ids=["as 8 bits", "24 bits", "up to 255", "negative", "no number"],
)
def test_grey_of_no_known_scale_is_refused(image: Image.Image, said: str) -> None:
    with pytest.raises(DataError, match=f"^row 2: image embedded image: .*{said}"):
        load_image(image, "row 2")


def test_deep_grey_is_turned_and_made_white_where_it_is_transparent(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep("<u2").save(tmp_path / "turned.tif", exif=exif)
    assert load_image(tmp_path / "turned.tif").size == (30, 20)
    assert load_image(tmp_path / "turned.tif").getpixel((29, 0)) == (0, 0, 0)
    deep("<u2").save(tmp_path / "clear.png", transparency=0)
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(tmp_path / "clear.png").getpixel((19, 29)) == (255, 255, 255)
    assert load_image(tmp_path / "clear.png").getpixel((1, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (0, 51), (204, 204, 204)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_colours_of_other_modes(mode: str, colour: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (4, 4), colour).save(path)
    found = np.array(load_image(path).getpixel((1, 1)))
    assert np.abs(found - expected).max() <= 1


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=0)
        assert [load_image(tmp_path / name).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


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
