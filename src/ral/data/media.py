"""Images and videos from disk to pixels: bounded, oriented, timed, and never silently replaced."""

from __future__ import annotations

import io
import math
import warnings
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
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF")
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
    numbers in the file; `duration` is the length of the whole video in seconds and `fps` the rate of its frames.
    """

    frames: np.ndarray
    times: np.ndarray
    duration: float
    fps: float
    indices: list[int]


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
    size = max(1, int(width * shrink)), max(1, int(height * shrink))
    shown = [(one.time, _upright(one.frame, *size)) for one in frames_at(path, timeline, targets, SEEK_SECONDS)]
    times = np.array([time for time, _ in shown])
    frames = np.stack([frame for _, frame in shown])
    return Video(frames, times, timeline.duration, timeline.fps, timeline.numbers(times))


def _upright(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """Pixels `[H, W, 3]` at this size, turned as the file says: telephones store portrait clips lying down."""
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, round(frame.rotation / 90) % 4)
