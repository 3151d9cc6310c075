"""Pictures under attention maps: images, and the frames of a video on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ral.data.shown_media import ShownMedia

#: Pictures side by side before a sheet goes on in the next row.
COLUMNS = 4


@dataclass(frozen=True)
class Sheet:
    """The pictures of one medium as one: row by row, `COLUMNS` in each. `boxes` are (x0, y0, x1, y1) in its pixels."""

    picture: Image.Image
    boxes: list[list[float]]
    times: list[float]


def sheet(media: ShownMedia, medium: range) -> Sheet:
    """The pictures `medium` of `media` as one; an image is its own sheet."""
    width, height = media.pictures[medium.start].size
    columns, rows = _shape(len(medium))
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    boxes = []
    for place, number in enumerate(medium):
        x, y = place % columns * width, place // columns * height
        whole.paste(media.pictures[number], (x, y))
        across, down = (to / of for to, of in zip((width, height), media.sizes[number], strict=True))
        boxes += [
            [b.x0 * across + x, b.y0 * down + y, b.x1 * across + x, b.y1 * down + y]
            for b in media.boxes
            if b.medium == number
        ]
    edge, lines = max(1, width // 100), ImageDraw.Draw(whole)
    for column in range(1, columns):
        lines.line((column * width, 0, column * width, rows * height), "white", edge)
    for row in range(1, rows):
        lines.line((0, row * height, columns * width, row * height), "white", edge)
    return Sheet(whole, boxes, [time for number in medium if (time := media.times[number]) is not None])


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
