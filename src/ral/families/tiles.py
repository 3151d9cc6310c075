"""Places of visual tokens on a picture: one grid per image, or several grids for its parts and the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: All of a picture.
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Tile:
    """A grid of visual tokens, row by row.

    Attributes:
        picture: the number of the picture it is of.
        box: what of the picture it shows: left, top, right and bottom in shares of width and height; beyond 0 and 1 where the
            picture stands on a larger canvas.
        newline: a further token closes every row; it shows nothing.
        medium: the number of its medium in the prompt, images first; None: that of the picture, as of every image.
    """

    picture: int
    rows: int
    columns: int
    box: tuple[float, float, float, float] = WHOLE
    newline: bool = False
    medium: int | None = None

    @property
    def tokens(self) -> int:
        return self.rows * (self.columns + self.newline)

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Heights `[rows]` and widths `[columns]` of the centres of its tokens, in shares of the picture."""
        left, top, right, bottom = self.box
        y, x = (np.arange(cells) + 0.5 for cells in (self.rows, self.columns))
        return top + y / max(self.rows, 1) * (bottom - top), left + x / max(self.columns, 1) * (right - left)

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Heights `[rows + 1]` and widths `[columns + 1]` between which its tokens lie, in shares of the picture."""
        left, top, right, bottom = self.box
        return np.linspace(top, bottom, self.rows + 1), np.linspace(left, right, self.columns + 1)

    def shows(self) -> NDArray[np.bool_]:
        """`[rows, columns]`, the tokens that show some of the picture; the others show what it is padded with."""
        down, across = ((edges[1:] > 1e-9) & (edges[:-1] < 1 - 1e-9) for edges in self.edges())
        return np.outer(down, across)

    def grid(self, tokens: NDArray) -> NDArray:
        """`[tokens]` → `[rows, columns]`, without the newlines."""
        return tokens.reshape(self.rows, self.columns + self.newline)[:, : self.columns]

    def flat(self, grid: NDArray) -> NDArray:
        """The other way; zero (false) on newlines."""
        return np.pad(grid, ((0, 0), (0, int(self.newline)))).ravel()


def showing(tiles: Sequence[Tile]) -> NDArray[np.bool_]:
    """`[N]` of all visual tokens: those that show some of their picture; newlines and padding do not."""
    return np.concatenate([tile.flat(tile.shows()) for tile in tiles]) if tiles else np.zeros(0, dtype=bool)


def interior(tiles: Sequence[Tile]) -> NDArray[np.bool_]:
    """`[N]` of all visual tokens: those that show something and do not touch the edge of their picture."""
    found = []
    for tile in tiles:
        down, across = ((edges[:-1] > 1e-9) & (edges[1:] < 1 - 1e-9) for edges in tile.edges())
        found.append(tile.flat(np.outer(down, across)))
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def cut(picture: int, rows: int, columns: int, side: int, canvas: tuple[float, float] = (1.0, 1.0)) -> list[Tile]:
    """A picture cut into `rows` × `columns` tiles of `side` × `side` tokens, row by row.

    `canvas`: width and height of all tiles in shares of the picture's, which stands at their upper left.
    """
    xs, ys = ([end * n / count for n in range(count + 1)] for end, count in zip(canvas, (columns, rows), strict=True))
    return [
        Tile(picture, side, side, (xs[x], ys[y], xs[x + 1], ys[y + 1])) for y in range(rows) for x in range(columns)
    ]


def frames_of(count: int, side: int) -> list[Tile]:
    """So many frames of videos, each a picture of its own in one grid of `side` × `side` tokens."""
    return [Tile(picture, side, side) for picture in range(count)]


def pictures(processor: Any, ids: Tensor, start: str) -> list[Tensor]:
    """The tokens of each image of a prompt `ids [P]`, which this token opens."""
    starts = (ids == processor.tokenizer.convert_tokens_to_ids(start)).nonzero()[:, 0]
    return list(torch.tensor_split(ids, starts.tolist())[1:])


def count(processor: Any, ids: Tensor, token: str) -> int:
    """How often the token stands in `ids`."""
    return int((ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())


class Encoded(dict[str, Any]):
    """A processor's tensors by name, as a model takes them, with what its visual tokens show beside them.

    Attributes:
        tiles: of all visual tokens, in the order of their features; empty where the tensors say it, or it is not known.
    """

    def __init__(self, tensors: Mapping[str, Any], tiles: Sequence[Tile] = ()):
        super().__init__(tensors)
        self.tiles = tuple(tiles)


def split(values: NDArray, tiles: Sequence[Tile]) -> list[NDArray]:
    """Values `[N]` of all visual tokens by tile."""
    return np.split(values, np.cumsum([tile.tokens for tile in tiles])[:-1])


def raster(weights: NDArray, tiles: Sequence[Tile]) -> tuple[NDArray[np.float64], ...]:
    """Weights `[N]` of visual tokens as one map a picture, on its finest grid; a coarser token's weight is spread over its cell.

    The sum of all maps is that of all tokens that show something.
    """
    alone = len({tile.picture for tile in tiles}) == len(tiles)
    if alone and not any(tile.newline or tile.box != WHOLE for tile in tiles):  # as they are
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
    total = inside.sum(axis=1, keepdims=True)
    return inside / np.where(total > 0, total, 1.0)  # a cell beside the picture shows nothing of it
