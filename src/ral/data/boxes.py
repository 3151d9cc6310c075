"""Boxes on grids of visual tokens: the tokens that show a box. Grids are (h, w), sizes (width, height) in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ral.data.record import Box
from ral.errors import DataError

if TYPE_CHECKING:  # the report reads boxes, too, and imports no torch
    from ral.families.tiles import Tile

Size = tuple[int, int]
#: Left, top, right and bottom of a rectangle.
Part = tuple[float, float, float, float]


def box_coverage(grid: tuple[int, int], size: Size, box: Box) -> NDArray[np.float64]:
    """Share [h, w] of each token's cell that `box` covers.

    The `grid` (h, w) tiles the medium of `size` (width, height) in pixels: the processor resizes a whole medium to the
    grid, so cells are width/w by height/h pixels, fractions included. The part of a box beyond the medium is cut off;
    a box that lies wholly outside raises `DataError`.
    """
    (rows, columns), (width, height) = grid, size
    coverage = np.outer(
        _overlap(box.y0 * rows / height, box.y1 * rows / height, rows),
        _overlap(box.x0 * columns / width, box.x1 * columns / width, columns),
    )
    if not coverage.sum() > 0:  # not a number is nothing too
        raise DataError(
            f"box ({box.x0}, {box.y0}, {box.x1}, {box.y1}) covers nothing of its {width}x{height} medium: "
            "expected x0 < x1 and y0 < y1 in pixels of the original image or video, not shares or resized pixels"
        )
    return coverage


def box_mask(grid: tuple[int, int], size: Size, boxes: Iterable[Box]) -> NDArray[np.bool_]:
    """Tokens [h, w] that belong to any of `boxes`.

    A token belongs to a box if the box covers at least half of the token's cell. If a box covers half of no cell, it owns the
    cells that it covers most. So small evidence is never lost, and no box is empty.
    """
    mask = np.zeros(grid, dtype=bool)
    for box in boxes:
        coverage = box_coverage(grid, size, box)
        mask |= _owned(coverage, float(coverage.max()))
    return mask


def _owned(coverage: NDArray[np.float64], most: float) -> NDArray[np.bool_]:
    """The cells that a box owns: those it covers half of, or else those it covers most; `most` is the largest share of any cell.

    The slack is for rounding: an edge that falls on the middle of a cell must not depend on the image's width. It is a share of
    the bound, so that a cell of which nothing is covered is never owned, however small the box is.
    """
    return (coverage > 0) & (coverage >= min(0.5, most) * (1 - 1e-9))


def box_masks(grids: Sequence[tuple[int, int]], boxes: Iterable[Box], sizes: Sequence[Size]) -> list[NDArray[np.bool_]]:
    """One `box_mask` per grid, whose medium has the size at the same place; `Box.medium` says which grid a box belongs to.

    Raises `DataError` where they do not fit.
    """
    if len(sizes) != len(grids):
        raise DataError(f"{len(grids)} attention maps but {len(sizes)} media sizes: give one size per map")
    boxes = list(boxes)
    for box in boxes:
        if box.medium >= len(grids):
            raise DataError(f"a box belongs to medium {box.medium}, but there are {len(grids)} attention maps")
    return [
        box_mask(grid, size, [box for box in boxes if box.medium == medium])
        for medium, (grid, size) in enumerate(zip(grids, sizes, strict=True))
    ]


def seen_boxes(tiles: Sequence[Tile], boxes: Iterable[Box], sizes: Sequence[Size]) -> list[Box]:
    """The boxes, each cut to the part of its picture that `tiles` show; a box of which they show nothing is left out.

    Some processors crop a picture: what lies beyond the crop was not seen by the model. `sizes` are those of the pictures, which
    `Box.medium` numbers. Raises `DataError` where they do not fit, and for a box that lies outside of its picture.
    """
    if (pictures := len({tile.picture for tile in tiles})) != len(sizes):
        raise DataError(f"{pictures} pictures in the prompt but {len(sizes)} sizes: give one size per picture")
    found = []
    for box in boxes:
        if box.medium >= len(sizes):
            raise DataError(f"a box belongs to medium {box.medium}, but there are {len(sizes)} pictures")
        box_coverage((1, 1), sizes[box.medium], box)  # refuses what lies outside
        part = _cut(box, shown_part(tiles, box.medium, sizes[box.medium]))
        found += [] if part is None else [part]
    return found


def shown_part(tiles: Sequence[Tile], picture: int, size: Size) -> Part:
    """What the tiles show of a picture of this size, in its pixels."""
    boxes = [tile.box for tile in tiles if tile.picture == picture and tile.rows and tile.columns]
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    (width, height), low, high = size, (max(min(lefts), 0.0), max(min(tops), 0.0)), (max(rights), max(bottoms))
    return low[0] * width, low[1] * height, min(high[0], 1.0) * width, min(high[1], 1.0) * height


def _cut(box: Box, part: Part) -> Box | None:
    """The box within a part of its picture; None if no more than a rounding error of it is there."""
    left, top, right, bottom = part
    x0, x1 = max(box.x0, left), min(box.x1, right)
    y0, y1 = max(box.y0, top), min(box.y1, bottom)
    if x1 - x0 <= 1e-9 * (box.x1 - box.x0) or y1 - y0 <= 1e-9 * (box.y1 - box.y0):
        return None
    return replace(box, x0=x0, y0=y0, x1=x1, y1=y1)


def tile_mask(tiles: Sequence[Tile], boxes: Iterable[Box], sizes: Sequence[Size]) -> NDArray[np.bool_]:
    """`[N]` visual tokens of all `tiles` that belong to any of `boxes`, by the rule of `box_mask`: half of a cell is covered.

    A box that covers half of no cell owns those it covers most, of all tiles of its picture; every tile that shows it has its
    tokens. Boxes are cut to what the tiles show, and none is true where they show no box (`seen_boxes`, which says what is
    raised).
    """
    found = [np.zeros((tile.rows, tile.columns), dtype=bool) for tile in tiles]
    for box in seen_boxes(tiles, boxes, sizes):
        own = [number for number, tile in enumerate(tiles) if tile.picture == box.medium]
        shares = {number: _tile_coverage(tiles[number], sizes[box.medium], box) for number in own}
        most = max(float(share.max(initial=0.0)) for share in shares.values())
        for number, share in shares.items():
            found[number] |= _owned(share, most)
    return np.concatenate([tile.flat(mask) for tile, mask in zip(tiles, found, strict=True)])


def _tile_coverage(tile: Tile, size: Size, box: Box) -> NDArray[np.float64]:
    """Share `[rows, columns]` of each of a tile's cells that a box on a picture of `size` covers."""
    (left, top, right, bottom), (width, height) = tile.box, size

    def along(start: float, end: float, low: float, high: float, cells: int) -> NDArray[np.float64]:
        return _overlap((start - low) / (high - low) * cells, (end - low) / (high - low) * cells, cells)

    return np.outer(
        along(box.y0 / height, box.y1 / height, top, bottom, tile.rows),
        along(box.x0 / width, box.x1 / width, left, right, tile.columns),
    )


def place_on_patches(boxes: Iterable[Box], frames: Sequence[int], temporal_patch: int = 2) -> list[Box]:
    """Boxes of one video moved from source frames to the temporal patches of visual tokens that show them.

    `frames` are the source numbers of the sampled frames, `temporal_patch` of which make one patch; the result's
    `medium` is the patch. A box without a frame holds in all of them; a box on a frame that was not sampled was not
    seen by the model and is left out.
    """
    return [
        replace(box, medium=patch, frame=None)
        for box in boxes
        for patch in sorted(
            {place // temporal_patch for place, frame in enumerate(frames) if box.frame in (None, frame)}
        )
    ]


def _overlap(start: float, end: float, cells: int) -> NDArray[np.float64]:
    """Length of [start, end) within each unit cell 0..cells-1."""
    left = np.arange(cells)
    return np.clip(np.minimum(end, left + 1) - np.maximum(start, left), 0.0, 1.0)
