"""LLaVA-OneVision: the whole image, then a finer grid of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from ral.families.family import Family, Sizes
from ral.families.tiles import Tile


class LlavaOnevision(Family):
    """The whole image, then a finer grid of it whose rows end in a token that shows nothing."""

    types = ("llava_onevision",)
    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes) -> list[Tile]:
        side, found = int(processor.num_image_tokens**0.5), []
        for picture, (size, length) in enumerate(zip(sizes, self.runs(processor, ids), strict=True)):
            found.append(Tile(picture, side, side))
            rest = length - side**2
            if rest == 1:  # one of several images: no finer grid, and one token behind it
                found.append(Tile(picture, 1, 0, newline=True))
            elif rest:
                rows = next(rows for rows in self._rows(processor, size, side) if rest % rows == 0)
                found.append(Tile(picture, rows, rest // rows - 1, newline=True))
        return found

    @staticmethod
    def _rows(processor: Any, size: tuple[int, int], side: int) -> list[int]:
        """Rows that the picture may have on its canvas of tiles, the bars above and below left out."""
        (width, height), images = size, processor.image_processor
        tall, wide = select_best_resolution((height, width), images.image_grid_pinpoints)
        rows, columns = side * tall // images.size["height"], side * wide // images.size["width"]
        if width / height <= columns / rows:
            return [rows]
        bar = (rows - int(round(height * (columns / width), 7))) // 2
        return [rows - 2 * bar, *range(rows, 0, -1)]
