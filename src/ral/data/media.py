"""Decodes images and videos to pixels: bounded, oriented, timed, and never replaced silently."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from ral.data.video import Timeline, frames_at, read_timeline
from ral.errors import DataError

#: Pixels of the largest image or video frame that is decoded; a header that promises more is refused unread.
MAX_PIXELS = 50_000_000
#: Pixels of all frames of one clip together; larger frames are scaled down while decoding. Models look at less.
MAX_CLIP_PIXELS = 150_000_000
#: Formats of images that are read. Others of the decoders' run programs (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
#: TIFF's tags for how many bits a value has, and for what these stand for: 2 is a signed integer.
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339
#: Frames of a video when neither a count nor a rate is asked for.
DEFAULT_FRAMES = 16
#: Most frames of a video sampled by rate when no count bounds it.
MAX_FRAMES = 768
#: Targets further apart than this are reached by seeking to a key frame instead of decoding all between.
SEEK_SECONDS = 10.0


@dataclass(frozen=True)
class Video:
    """Sampled frames of one video.

    `frames` is uint8 `[T, H, W, 3]`; `times` are the presentation times of the frames in seconds `[T]`, and `indices` their
    numbers in the file; `duration` is the length of the whole video in seconds and `fps` the rate of its frames. `size` is
    (width, height) of a frame in the file, turned as it is shown: boxes count its pixels, also where `frames` are scaled down.
    """

    frames: np.ndarray
    times: np.ndarray
    duration: float
    fps: float
    indices: list[int]
    size: tuple[int, int]


def load_image(source: Path | Image.Image, origin: str = "") -> Image.Image:
    """The image as RGB, turned as its EXIF tag says, on white where it is transparent.

    16-bit grey values range over 0..65535 (in a TIFF 12-bit ones over 0..4095, signed ones over 0..32767), floating-point values
    over [0, 1]. Other formats have no known scale and are refused.

    Raises `DataError`, naming `origin` and the file, for anything that is missing, broken, or too large.
    """
    name = getattr(source, "filename", None) or "embedded image" if isinstance(source, Image.Image) else source
    where = f"{origin}: image {name}" if origin else f"image {name}"
    try:
        with warnings.catch_warnings(), _opened(source) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is below
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{width}×{height} pixels, more than {MAX_PIXELS:,}; scale it down")
            scale = _integer_scale(image)  # a turned copy has no tags
            image = _eight_bits(ImageOps.exif_transpose(image), scale)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image if image.mode == "RGB" else image.convert("RGB")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # Pillow's decoders raise whatever a hostile file makes them raise
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file or drop the row") from error


@contextmanager
def _opened(source: Path | Image.Image) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        # Pixels are decoded into a copy, so that a data set of embedded images stays as small as its bytes.
        if isinstance(encoded := getattr(source, "fp", None), io.BytesIO):
            source = Image.open(io.BytesIO(encoded.getvalue()), formats=IMAGE_FORMATS)
        yield source
        return
    if not Path(source).is_file():
        raise DataError("no such file; check the path and the media root")
    with open(source, "rb") as file:  # not by its name: Pillow 13 maps such files, and turns mapped TIFFs wrongly
        yield Image.open(file, formats=IMAGE_FORMATS)


def _integer_scale(image: Image.Image) -> float | None:
    """The value of white that a TIFF's tags name for integers of up to 16 bits; None where nothing names it."""
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS_PER_SAMPLE, (0,)))
    return 2.0 ** (bits - (2 in tags.get(_SAMPLE_FORMAT, ()))) - 1 if 8 < bits <= 16 else None


def _eight_bits(image: Image.Image, scale: float | None) -> Image.Image:
    """Grey values of more than 8 bits scaled to them, which Pillow's own conversion would cut off; others as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    white = scale or 65535.0
    if image.mode == "F":
        if not (low >= 0.0 and high <= 1.0):  # not a number is neither
            raise DataError(
                f"floating-point values from {low:g} to {high:g}; scale them to [0, 1], or save it with 8 bits"
            )
        white = 1.0
    elif low < 0 or high > white or (image.mode == "I" and not scale and 0 < high <= 255):
        raise DataError(f"integers from {low:g} to {high:g}, of no known scale; save it with 8 or 16 bits")
    grey = np.round(np.clip(values / white, 0.0, 1.0) * 255)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey.astype(np.uint8))


def image_from_bytes(data: bytes, origin: str = "") -> Image.Image:
    """An image embedded in a table, opened lazily: the pixels are decoded by `load_image`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Exception as error:
        raise DataError(f"{origin}: embedded image cannot be decoded ({error}); replace or drop the row") from error


def frame_times(
    duration: float, total: int, num_frames: int | None, fps: float | None, last: float | None = None
) -> np.ndarray:
    """Times in seconds of the frames to take from a video of `total` frames that lasts `duration` seconds.

    Evenly spaced from the first frame to the last one, both included, as lmms-eval and Video-R1 do it. How many:
    `num_frames`; or with `fps` as many as that rate gives, at most `num_frames`; never more than the video has. One alone
    is the first. `last` is when the last frame appears: `duration - duration / total` where frames come at one rate.
    """
    count = DEFAULT_FRAMES if num_frames is None else num_frames
    if fps is not None:
        count = min(max(2, math.floor(duration * fps + 1e-6)), MAX_FRAMES if num_frames is None else num_frames)
    last = duration - duration / total if last is None else last
    return np.linspace(0.0, last, max(1, min(count, total)))


def load_video(path: Path, *, num_frames: int | None = None, fps: float | None = None, origin: str = "") -> Video:
    """Decode the frames of `path` that are on screen at `frame_times`, and keep no others' pixels.

    Raises `DataError`, naming `origin` and the file, for anything that is missing, broken, or too large.
    """
    where = f"{origin}: video {path}" if origin else f"video {path}"
    if not Path(path).is_file():
        raise DataError(f"{where}: no such file; check the path and the media root")
    try:
        timeline = read_timeline(path)
        if timeline.size[0] * timeline.size[1] > MAX_PIXELS:
            raise DataError("frames of {}×{} pixels; scale it down".format(*timeline.size))
        video = _sampled(path, timeline, num_frames, fps)
        first, last = video.times[0], video.times[-1] if len(video.times) > 1 else timeline.times[-1]
        if first > timeline.slack or last < timeline.times[-1] - timeline.slack:
            # Not every packet became a frame: what decodes is the video.
            video = _sampled(path, timeline.within(first, last), num_frames, fps)
        return video
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file or drop the row") from error


def _sampled(path: Path, timeline: Timeline, num_frames: int | None, fps: float | None) -> Video:
    targets = frame_times(timeline.duration, len(timeline.times), num_frames, fps, float(timeline.times[-1]))
    width, height = timeline.size
    shrink = min(1.0, math.sqrt(MAX_CLIP_PIXELS / (len(targets) * width * height)))
    decoded = max(1, int(width * shrink)), max(1, int(height * shrink))
    shown = [
        (one.time, _turns(one.frame), one.frame.to_ndarray(format="rgb24", width=decoded[0], height=decoded[1]))
        for one in frames_at(path, timeline, targets, SEEK_SECONDS)
    ]
    times = np.array([time for time, *_ in shown])
    frames = np.stack([np.rot90(pixels, turns) for _, turns, pixels in shown])
    size = (height, width) if shown[0][1] % 2 else (width, height)
    return Video(frames, times, timeline.duration, timeline.fps, timeline.numbers(times), size)


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns that make a frame upright, as the file says: telephones store portrait clips lying down."""
    return round(frame.rotation / 90) % 4
