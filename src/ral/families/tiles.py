"""Places of visual tokens on a picture: one grid per image, or several grids for its parts and the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Name under which a prompt's tiles travel beside the processor's tensors.
TILES = "visual_tiles"


@dataclass(frozen=True)
class Tile:
    """A grid of visual tokens, row by row.

    Attributes:
        picture: the number of the picture it is of.
        box: what of the picture it shows: left, top, right and bottom in shares of width and height.
        newline: a further token closes every row; it shows nothing.
    """

    picture: int
    rows: int
    columns: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    newline: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * (self.columns + self.newline)

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Heights `[rows]` and widths `[columns]` of the centres of its tokens, in shares of the picture."""
        left, top, right, bottom = self.box
        y, x = (np.arange(cells) + 0.5 for cells in (self.rows, self.columns))
        return top + y / max(self.rows, 1) * (bottom - top), left + x / max(self.columns, 1) * (right - left)

    def grid(self, tokens: NDArray) -> NDArray:
        """`[tokens]` → `[rows, columns]`, without the newlines."""
        return tokens.reshape(self.rows, self.columns + self.newline)[:, : self.columns]

    def flat(self, grid: NDArray) -> NDArray:
        """The other way; zero (false) on newlines."""
        return np.pad(grid, ((0, 0), (0, int(self.newline)))).ravel()


def interior(tiles: Sequence[Tile]) -> NDArray[np.bool_]:
    """`[N]` of all visual tokens: those that show something and do not touch the edge of their picture."""
    found = []
    for tile in tiles:
        left, top, right, bottom = tile.box
        inside = np.ones((tile.rows, tile.columns), dtype=bool)
        for touches, edge in (
            (left <= 0, np.s_[:, :1]), (right >= 1, np.s_[:, -1:]), (top <= 0, np.s_[:1]), (bottom >= 1, np.s_[-1:])
        ):  # fmt: skip
            inside[edge] &= not touches
        found.append(tile.flat(inside))
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def cut(picture: int, rows: int, columns: int, side: int) -> list[Tile]:
    """A picture cut into `rows` × `columns` tiles of `side` × `side` tokens, row by row."""
    return [
        Tile(picture, side, side, (x / columns, y / rows, (x + 1) / columns, (y + 1) / rows))
        for y in range(rows)
        for x in range(columns)
    ]


def to_tensor(tiles: Sequence[Tile]) -> Tensor:
    """`[tiles, 8]`, as it travels beside a processor's tensors."""
    rows = [(t.picture, t.rows, t.columns, *t.box, float(t.newline)) for t in tiles]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 8)


def from_tensor(rows: Tensor) -> tuple[Tile, ...]:
    """The other way."""
    return tuple(
        Tile(int(p), int(h), int(w), (x0, y0, x1, y1), bool(newline))
        for p, h, w, x0, y0, x1, y1, newline in rows.tolist()
    )


def split(values: NDArray, tiles: Sequence[Tile]) -> list[NDArray]:
    """Values `[N]` of all visual tokens by tile."""
    return np.split(values, np.cumsum([tile.tokens for tile in tiles])[:-1])


def raster(weights: NDArray, tiles: Sequence[Tile]) -> tuple[NDArray[np.float64], ...]:
    """Weights `[N]` of visual tokens as one map a picture, on its finest grid; a coarser token's weight is spread over its cell.

    The sum of all maps is that of all tokens that show something.
    """
    if len({tile.picture for tile in tiles}) == len(tiles) and not any(tile.newline for tile in tiles):  # as they are
        return tuple(tile.grid(part) for tile, part in zip(tiles, split(weights, tiles), strict=True))
    parts = list(zip(tiles, split(weights, tiles), strict=True))
    maps = []
    for picture in sorted({tile.picture for tile in tiles}):
        own = [(tile, tile.grid(part)) for tile, part in parts if tile.picture == picture and tile.columns]
        height = max(round(tile.rows / (tile.box[3] - tile.box[1])) for tile, _ in own)
        width = max(round(tile.columns / (tile.box[2] - tile.box[0])) for tile, _ in own)
        canvas = np.zeros((height, width))
        for tile, grid in own:
            left, top, right, bottom = tile.box
            y, x = _shares(top, bottom, tile.rows, height), _shares(left, right, tile.columns, width)
            canvas += y.T @ grid @ x
        maps.append(canvas)
    return tuple(maps)


def _shares(low: float, high: float, cells: int, size: int) -> NDArray[np.float64]:
    """`[cells, size]`: how the weight of each of the cells between two shares of the picture is spread over its `size` units."""
    edges = np.linspace(low, high, cells + 1) * size
    unit = np.arange(size)
    inside = np.clip(np.minimum(edges[1:, None], unit + 1) - np.maximum(edges[:-1, None], unit), 0.0, 1.0)
    return inside / inside.sum(axis=1, keepdims=True)
