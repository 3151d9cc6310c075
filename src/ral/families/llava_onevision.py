"""LLaVA-OneVision: the whole image, then a finer grid of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar

from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from ral.families.family import Family, Sizes
from ral.families.tiles import Tile


class LlavaOnevision(Family):
    """The whole image, then a finer grid of it whose rows end in a token that shows nothing."""

    types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    has_geometry = True
    reads_video: ClassVar[bool] = True

    def side(self, processor: Any) -> int:
        """Tokens along one side of the whole image, and of a tile of the finer grid."""
        return int(processor.num_image_tokens**0.5)

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        side, found = self.side(processor), []
        for picture, (size, length) in enumerate(zip(sizes, self.runs(processor, ids), strict=True)):
            found.append(Tile(picture, side, side))
            rest = length - side**2
            if rest == 1:  # one of several images: no finer grid, and one token behind it
                found.append(Tile(picture, 1, 0, newline=True))
            elif rest:
                rows = next(rows for rows in self._rows(processor.image_processor, size, side) if rest % rows == 0)
                found.append(Tile(picture, rows, rest // rows - 1, newline=True))
        return found

    def video_tiles(self, processor: Any, frames: Sequence[int], inputs: Mapping[str, Any]) -> list[Tile]:
        """Frames of half the side, and one token behind each video that shows nothing."""
        side, found = ceil(self.side(processor) / 2), list[Tile]()
        for count in frames:
            first = found[-1].picture + 1 if found else 0
            found += [Tile(first + frame, side, side) for frame in range(count)]
            found.append(Tile(first + count - 1, 1, 0, newline=True))
        return found

    def tile_edge(self, images: Any) -> int:
        """Pixels along one side of a tile."""
        return images.size["height"]  # type: ignore[no-any-return]

    def _rows(self, images: Any, size: tuple[int, int], side: int) -> list[int]:
        """Rows that the picture may have on its canvas of tiles, the bars above and below left out."""
        (width, height), edge = size, self.tile_edge(images)
        tall, wide = select_best_resolution((height, width), images.image_grid_pinpoints)
        rows, columns = side * tall // edge, side * wide // edge
        if width / height <= columns / rows:
            return [rows]
        bar = (rows - int(round(height * (columns / width), 7))) // 2
        return [rows - 2 * bar, *range(rows, 0, -1)]
