"""Decodes video files: the time of each frame, and the frames on screen at given times.

Times are read from the packets, not from headers: those count what an edit list hides, follow the sound where it lasts
longer, and know one frame rate where there are several. Seconds count from the first frame that is shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from ral.data.incomplete_files import missing_bytes
from ral.errors import DataError

#: Formats that are read. Others of the decoders' open further files (playlists).
FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf,h264,hevc"
#: Formats without times: their frames come at the rate that the codec names.
_UNTIMED = {"h264", "hevc", "mpegvideo"}
#: Formats that leave out times of frames: what is filled in depends on where reading starts, so they are read through. It may
#: also be wrong by a frame or two (a time twice, another one never), so frames at one rate are counted.
_SPARSE = {"mpeg"}
#: A header's frame rate is taken where the packets' agrees as far as this: packets' times are rounded to a clock.
_SAME_RATE = 2e-3


@dataclass(frozen=True)
class KeyFrame:
    """A packet that decoding can start from: seconds of its frame, and where it stands in the file's own clock."""

    time: float
    pts: int
    dts: int | None


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    `times [N]` are seconds from the first frame, in order; `duration` is when the last one ends. `fps` is the rate at which
    frames follow each other; `size` is (width, height) in pixels. `start` is the first frame's time by the file's clock,
    which counts `tick` seconds; None where frames have no times but a rate. `keys` are the frames that can be sought.
    """

    times: NDArray[np.float64]
    duration: float
    fps: float
    size: tuple[int, int]
    start: int | None = None
    tick: float = 0.0
    keys: tuple[KeyFrame, ...] = ()

    @property
    def slack(self) -> float:
        """Tolerance: a requested time this long before a frame's still means this frame, as the file's clock rounds times."""
        gaps = np.diff(self.times)
        return 0.1 * float(np.median(gaps)) if len(gaps) else 0.0

    def numbers(self, times: NDArray[np.float64]) -> list[int]:
        """The numbers of the frames that are on screen at `times`."""
        return [max(0, int(n) - 1) for n in np.searchsorted(self.times, times + self.slack, side="right")]

    def within(self, first: float, last: float) -> Timeline:
        """The frames from `first` to `last`, with seconds counted from the first of them."""
        kept = self.times[(self.times > first - self.slack) & (self.times < last + self.slack)]
        start = None if self.start is None else self.start + round(kept[0] / self.tick)
        keys = tuple(replace(key, time=key.time - float(kept[0])) for key in self.keys)
        whole = kept[-1] == self.times[-1]
        duration = float((self.duration if whole else kept[-1] + 1 / self.fps) - kept[0])
        return replace(self, times=kept - kept[0], duration=duration, start=start, keys=keys)


@dataclass(frozen=True)
class Shown:
    """A decoded frame and when it is shown, in seconds of its timeline."""

    time: float
    frame: av.VideoFrame


@contextmanager
def opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file and its first video stream. Raises DataError for a file without one."""
    with av.open(str(path), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise DataError("holds no video stream; it is not a video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def read_timeline(path: Path) -> Timeline:
    """The timeline of a file, from its packets: nothing is decoded, but the whole file is read.

    Raises DataError for a file that was cut off, holds no frames, or whose times jump back.
    """
    if missing := missing_bytes(path):
        raise DataError(f"the file is truncated: {missing:,} bytes or more are missing; replace it or drop the row")
    with opened(path) as (container, stream):
        codec, format = stream.codec_context, container.format.name
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        tick, size = float(stream.time_base or 0), (codec.width, codec.height)
        packets = [
            _Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        if format in _UNTIMED:
            rate = float(codec.framerate or rate)
        # AVI counts packets as they are decoded, not as they are shown.
        counted = format in _UNTIMED or (format == "avi" and codec.has_b_frames)
    if not packets:
        raise DataError("holds no frames; replace it or drop the row")
    if counted or all(packet.pts is None for packet in packets):
        if not rate:
            raise DataError("holds neither times nor a frame rate; write it again, for example as mp4")
        return _counted(len(packets), rate, size)
    line = _timeline(packets, tick, rate, size)
    if format not in _SPARSE:
        return line
    at_one_rate = rate and abs(len(packets) - 1 - line.times[-1] * rate) < 2.5  # wrong by up to two frames
    return _counted(len(packets), rate, size) if at_one_rate else replace(line, keys=())


def _counted(frames: int, rate: float, size: tuple[int, int]) -> Timeline:
    return Timeline(np.arange(frames) / rate, frames / rate, rate, size)


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool


def _timeline(packets: list[_Packet], tick: float, rate: float, size: tuple[int, int]) -> Timeline:
    """The timeline from the packets' times; `rate` is the header's, 0 if it has none."""
    decoded = np.array([packet.dts for packet in packets if packet.dts is not None], dtype=np.int64)
    if len(decoded) and float((np.maximum.accumulate(decoded) - decoded).max()) * tick > 1.0:
        raise DataError("its times jump back; write it again, for example with `ffmpeg -i FILE NEW.mp4`")
    timed = sorted((packet.pts, packet) for packet in packets if packet.pts is not None)
    start = timed[0][0]
    times = (np.unique([pts for pts, _ in timed]) - start) * tick
    fps = (len(times) - 1) / float(times[-1]) if len(times) > 1 else rate
    if not fps:
        raise DataError("holds one frame and no frame rate; give it as an image")
    if rate and abs(fps / rate - 1) < _SAME_RATE:
        fps = rate
    keys = tuple(KeyFrame((pts - start) * tick, pts, packet.dts) for pts, packet in timed if packet.is_key)
    duration = float(times[-1]) + (timed[-1][1].duration * tick or 1 / fps)
    if abs(duration - len(times) / fps) <= 2 * tick:  # one rate: both times were rounded to the clock
        duration = len(times) / fps
    return Timeline(times, duration, fps, size, start, tick, keys)


def frames_at(path: Path, timeline: Timeline, targets: NDArray[np.float64], seek_seconds: float) -> Iterator[Shown]:
    """The frame on screen at each of `targets`, seconds in order. The last frame stays on screen.

    Targets further away than `seek_seconds` are reached by seeking to a key frame. Raises DataError where nothing can be
    decoded.
    """
    playback = _Playback(path, timeline)
    try:
        for target in targets:
            yield playback.advance(float(target) + timeline.slack, seek_seconds)
    finally:
        playback.close()


class _Playback:
    """One pass through a video: the frame that is on screen, and the one that comes next."""

    _shown: Shown
    _coming: Shown | None

    def __init__(self, path: Path, timeline: Timeline):
        self._path, self._timeline = path, timeline
        self._start()

    def _start(self) -> None:
        self._open = ExitStack()
        self._container, self._stream = self._open.enter_context(opened(self._path))
        if not self._land(self._container.demux(self._stream)):
            raise DataError("no frame can be decoded; replace it or drop the row")

    def close(self) -> None:
        self._open.close()

    def advance(self, time: float, seek_seconds: float) -> Shown:
        """Go on to the frame that is on screen at `time`."""
        if time - self._shown.time > seek_seconds:
            self._seek(time)
        while self._coming is not None and self._coming.time <= time:
            self._shown, self._coming = self._coming, next(self._frames, None)
        return self._shown

    def _seek(self, time: float) -> None:
        """Jump to the last key frame before `time` where it lies ahead.

        Not every format finds its key frames: MPEG-TS lands somewhere near, which can be behind. Such a landing is noticed,
        and tried again from earlier places, at last from the start.
        """
        keys = self._timeline.keys
        number = bisect_right(keys, time, key=lambda key: key.time) - 1
        if number < 0 or keys[number].time <= self._shown.time:
            return
        for place in _places(keys[number], self._timeline.tick):
            try:
                self._container.seek(place, stream=self._stream)
            except av.error.FFmpegError:
                continue
            if self._land(self._container.demux(self._stream)) and self._shown.time <= time:
                return
        self.close()
        self._start()

    def _land(self, packets: Iterator[av.Packet]) -> bool:
        """Show the first frame that these packets decode to; False where there is none."""
        self._frames = self._decoded(packets)
        first = next(self._frames, None)
        if first is not None:
            self._shown, self._coming = first, next(self._frames, None)
        return first is not None

    def _decoded(self, packets: Iterator[av.Packet]) -> Iterator[Shown]:
        """Frames in the order in which they are shown, from the first key frame on: nothing before it can be decoded."""
        line, number, time = self._timeline, 0, 0.0
        waiting = bool(line.keys)
        for packet in packets:
            waiting = waiting and not packet.is_keyframe
            if waiting and packet.size:
                continue
            for frame in packet.decode():
                if line.start is None:
                    time = number / line.fps
                else:  # a frame without a time follows the one before it
                    time = time + 1 / line.fps if frame.pts is None else (frame.pts - line.start) * line.tick
                number += 1
                yield Shown(time, frame)


def _places(key: KeyFrame, tick: float) -> Iterator[int]:
    """Places to seek for a key frame, by the file's clock: formats use one of its two times; then earlier and earlier ones."""
    yield key.pts
    if key.dts is not None:
        yield key.dts
    early = 1.0
    while early < key.time:
        yield key.pts - round(early / tick)
        early *= 2
