"""Images and videos from disk to pixels: bounded, oriented, timed, and never silently replaced."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from ral.errors import DataError

#: Pixels of the largest image or video frame that is decoded; a header that promises more is refused unread.
MAX_PIXELS = 50_000_000
#: Pixels of all frames of one clip together; larger frames are scaled down while decoding. Models look at less.
MAX_CLIP_PIXELS = 150_000_000
#: Formats that are read. Others of the decoders' run programs (EPS) or open further files (playlists).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF")
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf,h264,hevc"
#: Frames of a video when neither a count nor a rate is asked for.
DEFAULT_FRAMES = 16
#: Most frames of a video sampled by rate when no count bounds it.
MAX_FRAMES = 768
#: Targets further apart than this are reached by seeking to a key frame instead of decoding all between.
SEEK_SECONDS = 10.0


@dataclass(frozen=True)
class Video:
    """Sampled frames of one video.

    `frames` is uint8 `[T, H, W, 3]`; `times` are the presentation times of the frames in seconds `[T]`;
    `duration` is the length of the whole video in seconds and `fps` the frame rate of the file.
    """

    frames: np.ndarray
    times: np.ndarray
    duration: float
    fps: float

    @property
    def indices(self) -> list[int]:
        """Numbers of the sampled frames in the file, as transformers' `VideoMetadata` counts them."""
        return [round(t * self.fps) for t in self.times]


def load_image(source: Path | Image.Image, origin: str = "") -> Image.Image:
    """The image as RGB, turned as its EXIF tag says, on white where it is transparent.

    Raises `DataError`, naming `origin` and the file, for anything that is missing, broken, or too large.
    """
    name = getattr(source, "filename", None) or "embedded image" if isinstance(source, Image.Image) else source
    where = f"{origin}: image {name}" if origin else f"image {name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is below
            image = source
            if not isinstance(image, Image.Image):
                if not Path(image).is_file():
                    raise DataError(f"{where}: no such file; check the path and the media root")
                image = Image.open(image, formats=IMAGE_FORMATS)
            elif isinstance(encoded := getattr(image, "fp", None), io.BytesIO):
                # Pixels are decoded into a copy, so that a data set of embedded images stays as small as its bytes.
                image = Image.open(io.BytesIO(encoded.getvalue()), formats=IMAGE_FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{where}: {width}×{height} pixels, more than {MAX_PIXELS:,}; scale it down")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image if image.mode == "RGB" else image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a hostile file makes them raise
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file or drop the row") from error


def image_from_bytes(data: bytes, origin: str = "") -> Image.Image:
    """An image embedded in a table, opened lazily: the pixels are decoded by `load_image`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Exception as error:
        raise DataError(f"{origin}: embedded image cannot be decoded ({error}); replace or drop the row") from error


def frame_times(duration: float, total: int, num_frames: int | None, fps: float | None) -> np.ndarray:
    """Times in seconds of the frames to take from a video of `total` frames that lasts `duration` seconds.

    `num_frames` alone: that many, evenly spaced from the first. `fps` alone: at that rate. Both: at the rate,
    but at most `num_frames`. Never more than the video has. The spacing is exactly `duration / count`.
    """
    count = DEFAULT_FRAMES if num_frames is None else num_frames
    if fps is not None:
        count = min(max(2, math.floor(duration * fps + 1e-6)), MAX_FRAMES if num_frames is None else num_frames)
    count = max(1, min(count, total))
    return np.arange(count) * (duration / count)


def load_video(path: Path, *, num_frames: int | None = None, fps: float | None = None, origin: str = "") -> Video:
    """Decode the frames of `path` that `frame_times` names, and no others' pixels.

    Raises `DataError`, naming `origin` and the file, for anything that is missing, broken, or too large.
    """
    where = f"{origin}: video {path}" if origin else f"video {path}"
    if not Path(path).is_file():
        raise DataError(f"{where}: no such file; check the path and the media root")
    try:
        limits = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
        with av.open(str(path), options=limits) as container:
            if not container.streams.video:
                raise DataError(f"{where}: holds no video stream; it is not a video")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context.width * context.height > MAX_PIXELS:
                raise DataError(f"{where}: frames of {context.width}×{context.height} pixels; scale it down")
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            duration, total = _length(container, stream, rate)
            targets = frame_times(duration, total, num_frames, fps)
            shrink = min(1.0, math.sqrt(MAX_CLIP_PIXELS / (len(targets) * context.width * context.height)))
            size = max(1, int(context.width * shrink)), max(1, int(context.height * shrink))
            # Times in a file are rounded to its clock, so a target waits a tenth of a frame for its own.
            picked = [
                (time, _upright(frame, *size))
                for time, frame in _pick(container, stream, targets + 0.1 / rate, 1 / rate)
            ]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file or drop the row") from error
    if len(picked) < len(targets):
        raise DataError(
            f"{where}: decoding stopped after {len(picked)} of {len(targets)} frames; "
            "the file is truncated, replace it or drop the row"
        )
    times, frames = zip(*picked, strict=True)
    return Video(np.stack(frames), np.array(times), duration, rate)


def _upright(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """Pixels `[H, W, 3]` at this size, turned as the file says: telephones store portrait clips lying down."""
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def _length(container: av.container.InputContainer, stream: av.VideoStream, rate: float) -> tuple[float, int]:
    """Seconds and number of frames: from the header where it knows, else by reading all packets."""
    if rate <= 0:
        raise ValueError("the header gives no frame rate")
    if stream.frames:
        return stream.frames / rate, stream.frames
    if container.duration:
        duration = container.duration / av.time_base
        return duration, max(1, round(duration * rate))
    total = sum(1 for packet in container.demux(stream) if packet.size)
    container.seek(0)
    return total / rate, total


def _pick(
    container: av.container.InputContainer, stream: av.VideoStream, targets: np.ndarray, frame_seconds: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(time, frame) of the frame on screen at each target; all times in seconds from the first frame."""
    waiting = iter(targets)
    target = next(waiting, None)
    shown: tuple[float, av.VideoFrame] | None = None
    for now, frame in _decode(container, stream, targets):
        while target is not None and now > target:
            time, hit = shown or (
                now,
                frame,
            )  # a first frame that starts late stands in for the time before it
            yield time, hit
            target = next(waiting, None)
        if target is None:
            return
        shown = now, frame
    # The stream has ended: its last frame serves the targets while it is on screen; later ones are missing.
    while target is not None and shown is not None and target <= shown[0] + 1.5 * frame_seconds:
        yield shown
        target = next(waiting, None)


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, targets: np.ndarray
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds, frame) in order of presentation; long gaps between targets are skipped by seeking."""
    stream.thread_type = "AUTO"
    base = float(stream.time_base or 1)
    start = stream.start_time or 0

    def frames() -> Iterator[tuple[float, av.VideoFrame]]:
        for frame in container.decode(stream):
            if frame.pts is not None:
                yield (frame.pts - start) * base, frame

    if len(targets) < 2 or targets[1] - targets[0] < SEEK_SECONDS:
        yield from frames()
        return
    for target in targets:
        container.seek(int(target / base) + start, stream=stream)  # lands on the key frame at or before it
        for now, frame in frames():
            yield now, frame
            if now > target:
                break
