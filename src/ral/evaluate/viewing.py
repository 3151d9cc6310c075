"""What attention maps lie on: the pictures of a record's media, and those of a video on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ral.data.media import load_image, load_video
from ral.data.record import Box, Record

from .grounding import place_on_patches
from .settings import EvalSettings

#: Pictures side by side before a sheet goes on in the next row.
COLUMNS = 4


@dataclass(frozen=True)
class View:
    """The media of a record as the model was shown them.

    pictures: at original size, as boxes are in its pixels, one for each attention map: every image, then of every video the
    first frame of each temporal patch. boxes: `medium` numbers the pictures. media: the numbers of each medium's pictures.
    times: seconds of each picture in its video, None for an image.
    """

    pictures: tuple[Image.Image, ...]
    boxes: tuple[Box, ...]
    media: tuple[range, ...]
    times: tuple[float | None, ...]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every picture."""
        return [picture.size for picture in self.pictures]

    def medium_of(self, picture: int) -> range:
        """The numbers of the pictures that are of one medium with this one."""
        return next(numbers for numbers in self.media if picture in numbers)


@dataclass(frozen=True)
class Sheet:
    """The pictures of one medium as one: row by row, `COLUMNS` in each. `boxes` are (x0, y0, x1, y1) in its pixels."""

    picture: Image.Image
    boxes: list[list[float]]
    times: list[float]


def view(record: Record, processor: Any, settings: EvalSettings) -> View:
    """The pictures of `record`, at the frames that the prompt has. Raises DataError as `load_image` and `load_video` do."""
    pictures = [load_image(image, record.origin) for image in record.images]
    boxes = [box for box in record.boxes if box.medium < len(pictures)]
    media = [range(number, number + 1) for number in range(len(pictures))]
    times: list[float | None] = [None] * len(pictures)
    for number, path in enumerate(record.videos, start=len(record.images)):
        video = load_video(path, num_frames=settings.num_frames, fps=settings.fps, origin=record.origin)
        patch, first = processor.video_processor.temporal_patch_size, len(pictures)
        own = [box for box in record.boxes if box.medium == number]
        placed = dict.fromkeys(place_on_patches(own, video.indices, patch))  # once for the frames of one patch
        boxes += [replace(box, medium=box.medium + first) for box in placed]
        pictures += [Image.fromarray(frame) for frame in video.frames[::patch]]
        times += video.times[::patch].tolist()
        media.append(range(first, len(pictures)))
    return View(tuple(pictures), tuple(boxes), tuple(media), tuple(times))


def sheet(view: View, medium: range) -> Sheet:
    """The pictures `medium` of a view as one; an image is its own sheet."""
    width, height = view.pictures[medium.start].size
    columns, rows = _shape(len(medium))
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    boxes = []
    for place, number in enumerate(medium):
        x, y = place % columns * width, place // columns * height
        whole.paste(view.pictures[number], (x, y))
        boxes += [[b.x0 + x, b.y0 + y, b.x1 + x, b.y1 + y] for b in view.boxes if b.medium == number]
    edge, lines = max(1, width // 100), ImageDraw.Draw(whole)
    for column in range(1, columns):
        lines.line((column * width, 0, column * width, rows * height), "white", edge)
    for row in range(1, rows):
        lines.line((0, row * height, columns * width, row * height), "white", edge)
    return Sheet(whole, boxes, [time for number in medium if (time := view.times[number]) is not None])


def sheet_map(maps: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The maps `[h, w]` of one medium's pictures as the map of its sheet: `[rows · h, columns · w]`."""
    height, width = maps[0].shape
    columns, rows = _shape(len(maps))
    whole = np.zeros((rows * height, columns * width))
    for place, map_ in enumerate(maps):
        x, y = place % columns * width, place // columns * height
        whole[y : y + height, x : x + width] = map_
    return whole


def _shape(pictures: int) -> tuple[int, int]:
    """Columns and rows of a sheet."""
    columns = min(pictures, COLUMNS)
    return columns, -(-pictures // columns)
