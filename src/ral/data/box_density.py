"""Boxes as a smooth distribution over visual tokens: a mixture of Gaussians with a background (EASE, arXiv 2605.30912)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ral.data.boxes import Size, seen_boxes
from ral.data.record import Box

if TYPE_CHECKING:
    from ral.families.tiles import Tile

#: Least width and height of a Gaussian's box, in shares of the picture: far below a token, and far above what overflows.
LEAST_SIDE = 1e-6


def tile_density(
    tiles: Sequence[Tile], boxes: Sequence[Box], sizes: Sequence[Size], sigma: float, background: float
) -> NDArray[np.float64] | None:
    """`[N]` over the visual tokens of all `tiles`, summing to 1: (1 − α) · mean of the boxes' Gaussians + α · uniform.

    Boxes are cut to what the tiles show, as in the mask (`seen_boxes`, which says what is raised); None where they show no box.

    A box's Gaussian has its mean at the box's centre and standard deviations of `sigma` (σ) times its width and height. It is
    taken at the centres of tokens and sums to 1. The paper gives σ = 0.25 and α = 0.1 (`background`); equal weights of
    boxes and a σ for each axis are assumed.

    Args:
        sizes: (width, height) of every picture; `Box.medium` numbers them.
    """
    spots = [_gaussian(tiles, box, sizes[box.medium], sigma) for box in seen_boxes(tiles, boxes, sizes)]
    if not spots:
        return None
    return (1 - background) * np.mean(spots, axis=0) + background / len(spots[0])


def _gaussian(tiles: Sequence[Tile], box: Box, size: Size, sigma: float) -> NDArray[np.float64]:
    """`[N]`, summing to 1; 0 on other pictures, and on tokens that show nothing (newlines, padding)."""
    logs = []
    for tile in tiles:
        down, across = tile.centres()
        y = _exponents(down, box.y0 / size[1], box.y1 / size[1], sigma)
        x = _exponents(across, box.x0 / size[0], box.x1 / size[0], sigma)
        shows = tile.flat(tile.shows() & (tile.picture == box.medium))
        logs.append(np.where(shows, tile.flat(y[:, None] + x), -np.inf))
    joined = np.concatenate(logs)
    weights = np.exp(joined - joined.max())  # of a box far smaller than a token, the nearest token
    return weights / weights.sum()


def _exponents(centres: NDArray[np.float64], start: float, stop: float, sigma: float) -> NDArray[np.float64]:
    """Log-density, up to a constant, at places along one axis; all in shares of the picture."""
    return -0.5 * ((centres - (start + stop) / 2) / (sigma * max(stop - start, LEAST_SIDE))) ** 2
