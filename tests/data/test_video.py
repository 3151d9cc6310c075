"""Frames at their times, from real files of many kinds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ral.data import media
from ral.data.media import frame_times, load_video
from ral.data.video import read_timeline
from ral.errors import DataError

#: File name, codec, container.
KINDS = [
    ("a.mp4", "libx264", "mp4"),
    ("a.mkv", "libx264", "matroska"),
    ("a.webm", "libvpx-vp9", "webm"),
    ("a.avi", "mpeg4", "avi"),
    ("b-frames.avi", "libx264", "avi"),
    ("a.ts", "libx264", "mpegts"),
    ("old.ts", "mpeg4", "mpegts"),
    ("a.flv", "libx264", "flv"),
    ("a.wmv", "wmv2", "asf"),
    ("a.h264", "libx264", "h264"),
]


def grey(n: int) -> int:
    return 37 * n % 251


def write(
    path: Path, frames: int, rate: int, codec: str = "libx264", container: str | None = None, key_every: int = 12,
    start: float = 0.0, times: Sequence[float] | None = None, last: float = 0.0, options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """A clip whose n-th frame has the grey value `grey(n)`, shown at `start + n / rate`, or at `start + times[n]`; the last
    one for `last` seconds, if given."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(
            codec, rate=rate, options={"g": str(key_every), "sc_threshold": "0", **(options or {})}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey(n), np.uint8), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[n]), Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet in packets:
            if last and packet.pts == max(p.pts for p in packets):
                packet.duration = round(last / packet.time_base)
            packet.pts += round(start / packet.time_base)
            packet.dts += round(start / packet.time_base)
        file.mux(packets)
    return path


def shown(video: media.Video) -> list[float]:
    return video.frames.mean((1, 2, 3)).tolist()


@pytest.mark.parametrize("rate", [7, 30])
@pytest.mark.parametrize(("name", "codec", "container"), KINDS)
def test_every_format_gives_the_frames_of_their_times_with_and_without_seeking(
    name: str, codec: str, container: str, rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name, frames := 181, rate, codec, container, key_every=25)
    numbers = np.linspace(0, frames - 1, 9, dtype=int)
    found = []
    for seek in (0.5, np.inf):
        monkeypatch.setattr(media, "SEEK_SECONDS", seek)
        found.append(video := load_video(path, num_frames=9))
        assert video.indices == numbers.tolist()
        np.testing.assert_allclose(video.times, numbers / rate, atol=6e-4)  # Matroska and FLV count milliseconds
        np.testing.assert_allclose(shown(video), [grey(n) for n in numbers], atol=6)
        assert video.duration == pytest.approx(frames / rate, abs=2e-3)
        assert video.fps == rate
    np.testing.assert_array_equal(found[0].frames, found[1].frames)


@pytest.mark.parametrize(("rate", "frames"), [(7, 21), (15, 30)])
@pytest.mark.parametrize(("name", "codec", "container"), KINDS)
def test_a_rate_takes_as_many_frames_whatever_clock_the_format_has(
    name: str, codec: str, container: str, rate: int, frames: int, tmp_path: Path
) -> None:
    """Matroska and FLV count milliseconds, by which the last frame ended a little early."""
    video = load_video(write(tmp_path / name, frames, rate, codec, container), fps=2)
    assert video.duration == pytest.approx(frames / rate, abs=1e-9)
    assert len(video.times) == 2 * frames // rate


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
@pytest.mark.parametrize("container", ["mpeg", "vob"])
@pytest.mark.parametrize("reordered", ["0", "2"])
def test_frames_whose_times_the_format_leaves_out_are_counted(
    codec: str, container: str, reordered: str, tmp_path: Path
) -> None:
    """The reader fills in times: with reordered frames one time twice, and another one not at all."""
    path = write(tmp_path / "a.mpg", 60, 25, codec, container, options={"bf": reordered})
    video = load_video(path, num_frames=60)
    assert video.indices == list(range(60))
    assert (video.duration, video.fps) == (2.4, 25)
    np.testing.assert_allclose(video.times, np.arange(60) / 25)
    np.testing.assert_allclose(shown(video), [grey(n) for n in range(60)], atol=8)


@pytest.mark.parametrize("key_every", [5, 60, 1000])
@pytest.mark.parametrize("start", [0.0, 4000.5])
@pytest.mark.parametrize("rate", [7, 25])
def test_mpegts_is_sought_whatever_its_key_frames_and_start(
    key_every: int, start: float, rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A healthy file with targets more than ten seconds apart: seeking must land nowhere behind one."""
    path = write(tmp_path / "a.ts", 60 * rate, rate, container="mpegts", key_every=key_every, start=start)
    video = load_video(path, num_frames=6)
    assert video.times[1] > media.SEEK_SECONDS
    assert video.indices == np.linspace(0, 60 * rate - 1, 6, dtype=int).tolist()
    monkeypatch.setattr(media, "SEEK_SECONDS", np.inf)
    np.testing.assert_array_equal(video.frames, load_video(path, num_frames=6).frames)


def test_a_recording_that_starts_between_key_frames_starts_at_the_first(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.ts", 100, 25, container="mpegts", key_every=20)
    content = whole.read_bytes()
    with av.open(str(whole)) as file:
        keys = [packet for packet in file.demux(video=0) if packet.is_keyframe]
        between = (keys[1].pos + keys[2].pos) // 2 // 188 * 188
    (tmp_path / "cut.ts").write_bytes(content[between:])
    video = load_video(tmp_path / "cut.ts", num_frames=100)
    assert shown(video)[0] == pytest.approx(grey(40), abs=6)
    assert len(video.frames) == 60
    assert video.times[0] == 0
    assert video.duration == pytest.approx(60 / 25)


def copied(source: Path, target: Path, start: float) -> Path:
    """As `ffmpeg -ss START -i SOURCE -c copy TARGET`: what comes before the start is there, and hidden."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        shift = round(start / old.streams.video[0].time_base)
        for packet in old.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)
    return target


@pytest.mark.parametrize(("start", "suffix", "key_every"), [(2.0, "mov", 400), (3.2, "mp4", 30)])
def test_what_an_edit_list_hides_is_no_part_of_the_video(
    start: float, suffix: str, key_every: int, tmp_path: Path
) -> None:
    whole = write(tmp_path / f"whole.{suffix}", 150, 20, key_every=key_every)
    video = load_video(copied(whole, tmp_path / f"cut.{suffix}", start), num_frames=5)
    first = round(20 * start)
    numbers = np.linspace(0, 149 - first, 5, dtype=int)
    assert video.indices == numbers.tolist()
    np.testing.assert_allclose(shown(video), [grey(first + n) for n in numbers], atol=6)
    assert video.duration == pytest.approx(7.5 - start)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_sound_that_lasts_longer_adds_no_frames(name: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = file.add_stream("aac", rate=16000)
        packets = []
        for n in range(30):
            pixels = np.full((48, 64, 3), grey(n), np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        packets += stream.encode()
        for n in range(7 * 16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 1000 * n, Fraction(1, 16000)
            packets += sound.encode(frame)
        file.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    video = load_video(tmp_path / name, num_frames=4)
    assert video.indices == [0, 9, 19, 29]
    assert video.duration == pytest.approx(3.0, abs=2e-3)


def test_frames_at_several_rates_are_those_on_screen(tmp_path: Path) -> None:
    """Fast, then slow, then a still: evenly spaced times from the first frame to the last, each with what is shown then."""
    starts = [*np.arange(0, 2, 0.04), *np.arange(2, 12, 1.0)]
    path = write(tmp_path / "a.mp4", len(starts), 1000, times=starts, last=5.0, options={"bf": "0"})
    video = load_video(path, num_frames=12)
    expected = np.searchsorted(starts, np.linspace(0, 11, 12) + 1e-3, side="right") - 1
    assert video.indices == expected.tolist()
    np.testing.assert_allclose(video.times, np.array(starts)[expected], atol=1e-3)
    np.testing.assert_allclose(shown(video), [grey(n) for n in expected], atol=6)
    assert video.duration == pytest.approx(16.0, abs=1e-2)
    assert len(load_video(path, fps=0.25).frames) == 4


def test_the_last_frame_is_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 95, 5)
    for settings in ({}, {"num_frames": 2}, {"fps": 0.3}, {"fps": 3.0, "num_frames": 10}):
        assert load_video(path, **settings).indices[-1] == 94  # type: ignore[arg-type]
    assert load_video(path, num_frames=1).indices == [0]


@pytest.mark.parametrize("angle", [90, 180, 270])
@pytest.mark.parametrize("name", ["turned.mp4", "turned.mov"])
def test_videos_are_turned_as_their_display_matrix_says(angle: int, name: str, tmp_path: Path) -> None:
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[:16] = 250  # a bright top edge
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(angle)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    video = load_video(tmp_path / name, num_frames=2)
    frames = video.frames
    expected = np.rot90(pixels, angle // 90)  # counterclockwise
    assert frames.shape == (2, *expected.shape)
    assert np.abs(frames.astype(int) - expected).mean() < 5
    assert video.size == ((64, 96) if angle % 180 else (96, 64))


@pytest.mark.parametrize("share", [0.4, 0.9, 0.995])
@pytest.mark.parametrize(("name", "codec", "container"), [kind for kind in KINDS if kind[2] not in ("mpegts", "h264")])
def test_a_file_that_was_cut_off_is_refused(
    name: str, codec: str, container: str, share: float, tmp_path: Path
) -> None:
    path = write(tmp_path / f"whole-{name}", 100, 10, codec, container)
    if container == "mp4":  # with its index first, as it is put on the web
        path = fast_start(path, tmp_path / "fast.mp4")
    content = path.read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    assert len(load_video(path, num_frames=3).frames) == 3
    with pytest.raises(DataError, match=rf"^row 3: video .*{name}: the file is truncated: .*replace it"):
        load_video(tmp_path / name, num_frames=3, origin="row 3")


def fast_start(source: Path, target: Path) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return target


def test_a_live_recording_of_unknown_length_is_read(tmp_path: Path) -> None:
    """Matroska that was written into a pipe says nowhere how long it is; nor does a movie in fragments."""
    for name, options in (("a.mkv", {"live": "1"}), ("a.mp4", {"movflags": "frag_keyframe+empty_moov"})):
        with av.open(str(tmp_path / name), "w", options=options) as file:
            stream = file.add_stream("libx264", rate=10, options={"g": "10"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for n in range(40):
                pixels = np.full((48, 64, 3), grey(n), np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            file.mux(stream.encode())
        assert load_video(tmp_path / name, num_frames=4).indices == [0, 13, 26, 39]


def test_times_that_jump_back_are_refused(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{n}.ts", 60, 10, container="mpegts", start=s) for n, s in ((0, 50), (1, 0)))
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=r"joined\.ts: its times jump back; .*ffmpeg"):
        load_video(tmp_path / "joined.ts")


def test_a_timeline_can_be_cut_to_what_decodes(tmp_path: Path) -> None:
    line = read_timeline(write(tmp_path / "a.mp4", 50, 10))
    cut = line.within(1.0, 3.0)
    np.testing.assert_allclose(cut.times, np.arange(21) / 10)
    assert cut.duration == pytest.approx(2.1)
    assert line.within(1.0, 4.9).duration == pytest.approx(4.0)
    assert cut.numbers(np.array([0.0, 0.95, 1.0, 2.0])) == [0, 9, 10, 20]
    assert frame_times(cut.duration, 21, 3, None, float(cut.times[-1])).tolist() == [0.0, 1.0, 2.0]
    assert line.start is not None
    assert cut.start == line.start + round(1 / line.tick), "the same frames by the file's clock"
    assert [key.time for key in cut.keys] == pytest.approx([key.time - 1 for key in line.keys])
    counted = read_timeline(write(tmp_path / "a.h264", 50, 10, container="h264"))
    assert counted.start is counted.within(1.0, 3.0).start is None


@pytest.mark.parametrize("start", [0.0, 4000.5])
def test_key_frames_are_counted_from_the_first_frame(start: float, tmp_path: Path) -> None:
    """Were they counted by the file's clock, none would be sought, and a long file would be decoded from its start."""
    line = read_timeline(write(tmp_path / "a.ts", 100, 20, container="mpegts", key_every=25, start=start))
    np.testing.assert_allclose([key.time for key in line.keys], [0, 1.25, 2.5, 3.75], atol=1e-3)
    assert line.start == line.keys[0].pts
