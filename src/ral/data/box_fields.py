"""Reads the boxes of a row into pixels of their media. The scale is stated, never guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import av
from PIL import Image

from ral.data.boxes import Size
from ral.data.media import IMAGE_FORMATS
from ral.data.record import Box, BoxScale
from ral.data.values import is_number, short
from ral.data.video import FORMATS as VIDEO_FORMATS

BOX_SCALES: tuple[BoxScale, ...] = get_args(BoxScale)

_LARGEST: dict[BoxScale, float] = {"unit": 1.0, "thousand": 1000.0}
_CORNERS = ("x0", "y0", "x1", "y1")
_TRANSPOSED = range(5, 9)  # values of the EXIF tag for orientation that swap width and height


def read_boxes(value: Any, scale: BoxScale, media: tuple[Path | Image.Image, ...], images: int) -> tuple[Box, ...]:
    """The boxes that `value` lists, in pixels.

    Args:
        value: a list of `[x0, y0, x1, y1]` or of objects with these names and `medium`, `frame`; or one of them.
        media: the row's images, `images` in number, and then its videos.

    Raises ValueError, saying what was expected, for a box that is no rectangle of a medium of the row.
    """
    items = value if isinstance(value, list | tuple) else [value]
    if len(items) == 4 and not any(isinstance(item, list | tuple | dict) for item in items):
        items = [items]
    sizes: dict[int, Size] = {}

    def size(medium: int) -> Size:
        if medium not in sizes:
            sizes[medium] = media_size(media[medium], video=medium >= images)
        return sizes[medium]

    return tuple(_in_pixels(_box(item, len(media), images), scale, size) for item in items)


def _box(item: Any, media: int, images: int) -> Box:
    """One box as it is written: its corners, or an object of them, or one that holds them in `bbox`."""
    values = item if isinstance(item, dict) else {"bbox": item}
    inner = next((values[name] for name in ("bbox", "box", "bbox_2d") if name in values), None)
    corners: list[Any] = [values.get(name) for name in _CORNERS] if inner is None else _listed(inner)
    if (
        len(corners) != 4
        or not all(map(is_number, corners))
        or not (corners[0] < corners[2] and corners[1] < corners[3])
    ):
        raise ValueError(f"[x0, y0, x1, y1], four finite numbers with x0 < x1 and y0 < y1, found {short(item)}")
    medium, frame = (values.get("medium") or 0), values.get("frame")
    if not _is_index(medium) or medium >= media:
        raise ValueError(f"a box of one of the row's {media} images and videos, numbered from 0, found {short(item)}")
    if frame is not None and (not _is_index(frame) or medium < images):
        raise ValueError(f"a `frame` that is the number of a frame of a video, found {short(item)}")
    x0, y0, x1, y1 = corners
    return Box(x0, y0, x1, y1, medium, frame)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _in_pixels(box: Box, scale: BoxScale, size: Callable[[int], Size]) -> Box:
    corners = (box.x0, box.y0, box.x1, box.y1)
    if scale != "unit" and min(corners) >= 0 and max(corners) <= 1:
        raise ValueError(
            f"{'pixels' if scale == 'pixels' else 'thousandths'}, found {list(corners)}, which seem to be shares of the "
            "size: name the scale (box_scale: unit)"
        )
    if scale == "pixels":
        return box
    largest = _LARGEST[scale]
    if min(corners) < 0 or max(corners) > largest:
        raise ValueError(f"coordinates from 0 to {largest:g} (box_scale: {scale}), found {list(corners)}")
    width, height = size(box.medium)
    across, down = width / largest, height / largest
    return Box(box.x0 * across, box.y0 * down, box.x1 * across, box.y1 * down, box.medium, box.frame)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def media_size(medium: Path | Image.Image, *, video: bool = False) -> Size:
    """(width, height) of a medium as it is shown, turned as its file says. Raises ValueError if it cannot be opened."""
    try:
        if video:
            with av.open(str(medium), options={"format_whitelist": VIDEO_FORMATS}) as container:
                frame = next(container.decode(video=0))
                turned = frame.rotation % 180 != 0
                return (frame.height, frame.width) if turned else (frame.width, frame.height)
        if isinstance(medium, Image.Image):
            return _upright(medium)
        with Image.open(medium, formats=IMAGE_FORMATS) as image:
            return _upright(image)
    except Exception as error:  # decoders raise whatever a hostile file makes them raise
        raise ValueError(f"a medium whose size can be read, but {medium} cannot be opened ({error})") from error


def _upright(image: Image.Image) -> Size:
    width, height = image.size
    if image.format == "TIFF":  # Pillow gives the size as it is shown
        return width, height
    return (height, width) if image.getexif().get(0x0112) in _TRANSPOSED else (width, height)
