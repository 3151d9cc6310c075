"""Recognises copies of a picture, and keeps pictures apart that only look similar.

White pages with different words, charts with different bars: at eight by eight pixels they are one. So the few pictures
that are nearest there are compared as they are, in windows of four by four pixels. To decode them is what takes time; most pages
are told apart before, by their brightness at 32 by 32 pixels.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ral.data.boxes import Size
from ral.data.media import load_image, load_video

#: Steps (of 0–255) by which cells of eight-by-eight pictures of copies may differ, and how many pictures are compared closely.
_CELL_STEPS, _NEAREST = 24, 8
#: Pixels of a side at which brightness is kept. Copies differ there by few steps, and by more where a cell is few pixels: scaling
#: moves its edges. Measured, JPEG at quality 50 and scaling by 0.5 to 2: pages of text by up to 11, 14 and 20 at cells of 19, 14
#: and 5 pixels (allowed are 24, 29 and 68); two pages of one layout by 22 or more at 39 pixels (16), 29 or more at 19.
_FINE, _FINE_STEPS, _EDGE_STEPS = 32, 8.0, 300.0
#: Steps by which the means of small windows of copies may differ: of one size, and of two. Measured: JPEG at quality 50 moves
#: them by up to 19, scaling by 0.5 to 2 by up to 25; one digit on a page by 21 or more, a word by 46 or more.
_WINDOW, _STEPS, _SCALED_STEPS = 4, 20.0, 28.0
#: Pixels of the longer side at which pictures are compared.
_LONGEST = 768
#: One video in memory at a time: a clip may take half a gigabyte.
ONE_VIDEO = threading.Lock()


@dataclass(frozen=True)
class Appearance:
    """Features that identify a medium: `digest` of its bytes (or pixels), `cells` [8 · 8 · 3], its mean colours, and `fine`
    [32 · 32], its brightness.

    `size` is (width, height) in pixels of the file; `picture` gives the picture again (the middle frame of a video).
    """

    digest: str
    size: Size
    cells: NDArray[np.uint8] = field(compare=False, repr=False)
    fine: NDArray[np.uint8] = field(compare=False, repr=False)
    picture: Callable[[], Image.Image] = field(compare=False, repr=False)


class LookIndex:
    """Finds among many looks one of the same picture."""

    def __init__(self) -> None:
        self._looks: list[tuple[Appearance, str]] = []
        self._by_digest: dict[str, int] = {}
        # A row for each look, and room for more.
        self._cells = np.empty((16, 192), dtype=np.uint8)
        self._fine = np.empty((16, _FINE * _FINE), dtype=np.uint8)
        self._sides = np.empty(16)

    def add(self, look: Appearance, owner: str) -> None:
        count = len(self._looks)
        if count == len(self._cells):
            self._cells, self._fine, self._sides = (
                np.concatenate([rows, np.empty_like(rows)]) for rows in (self._cells, self._fine, self._sides)
            )
        self._cells[count], self._fine[count], self._sides[count] = look.cells, look.fine, min(look.size)
        self._by_digest.setdefault(look.digest, count)
        self._looks.append((look, owner))

    def find(self, look: Appearance) -> tuple[Appearance, str] | None:
        """The look, with its owner, of the same bytes, else the nearest of the same picture."""
        if (same := self._by_digest.get(look.digest)) is not None:
            return self._looks[same]
        near = self._near(look)
        if not len(near):
            return None
        picture = look.picture()
        least, nearest = min((difference(picture, self._looks[n][0].picture()), n) for n in near[:_NEAREST])
        return self._looks[nearest] if least <= 1 else None

    def _near(self, look: Appearance) -> NDArray[np.intp]:
        """The numbers of the looks that may be of the same picture, the nearest first."""
        apart = _apart(self._cells[: len(self._looks)], look.cells)
        near = np.flatnonzero(apart.max(axis=1, initial=0) <= _CELL_STEPS)
        cell = np.minimum(self._sides[near], min(look.size)) / _FINE
        alike = _apart(self._fine[near], look.fine).max(axis=1, initial=0) <= _FINE_STEPS + _EDGE_STEPS / cell
        return near[alike][np.argsort(apart[near[alike]].sum(axis=1), kind="stable")]


def _apart(known: NDArray[np.uint8], values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """|a − b| of unsigned numbers."""
    return np.maximum(known, values) - np.minimum(known, values)


def image_look(source: Path | Image.Image, origin: str = "") -> Appearance:
    """Decode an image and say how it is recognised. Raises `DataError` if it cannot be decoded."""
    image = load_image(source, origin)
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return Appearance(digest, image.size, _cells(image), _fine(image), lambda: load_image(source, origin))


def video_look(path: Path, origin: str = "", *, num_frames: int | None = None, fps: float | None = None) -> Appearance:
    """Decode a video's frames as training would and say how it is recognised: by its bytes and its middle frame."""

    def middle() -> tuple[Image.Image, Size]:
        video = load_video(path, origin=origin, num_frames=num_frames, fps=fps)
        return Image.fromarray(video.frames[len(video.frames) // 2]), video.size

    with ONE_VIDEO:
        picture, size = middle()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Appearance(digest.hexdigest(), size, _cells(picture), _fine(picture), lambda: middle()[0])


def _cells(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.uint8).ravel()


def _fine(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").resize((_FINE, _FINE), Image.Resampling.BOX), dtype=np.uint8).ravel()


def difference(a: Image.Image, b: Image.Image) -> float:
    """The largest difference of two pictures in any small window; up to 1, one is a copy of the other.

    A copy may be of another size or compression.
    """
    width, height = min(a.width, b.width), min(a.height, b.height)
    shrink = min(1.0, _LONGEST / max(width, height))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    first, second = (np.asarray(_grey(image, size), dtype=np.float32) for image in (a, b))
    steps = _STEPS if a.size == b.size else _SCALED_STEPS
    return float(np.abs(_window_means(first - second)).max()) / steps


def _grey(image: Image.Image, size: Size) -> Image.Image:
    grey = image.convert("L")
    return grey if grey.size == size else grey.resize(size, Image.Resampling.BICUBIC)


def _window_means(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Means of all windows of `_WINDOW` by `_WINDOW` values (or the whole, where that is smaller) of [H, W]."""
    down, across = (min(_WINDOW, length) for length in values.shape)
    sums = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    windows = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across] + sums[:-down, :-across]
    return windows / (down * across)
