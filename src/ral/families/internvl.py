"""InternVL: tiles of an image, then the whole image. A video is a row of whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from ral.families.family import BoxSpace, Family, Sizes, side_of
from ral.families.tiles import Tile, cut, frames_of


class InternVL(Family):
    """Tiles of one size, behind which follows the whole image, as large as a tile."""

    types: ClassVar[tuple[str, ...]] = ("internvl",)
    box_space: ClassVar[BoxSpace | None] = "thousandths"
    has_geometry = True
    reads_video: ClassVar[bool] = True
    mixes_media = False
    canvas: ClassVar[Any] = staticmethod(get_optimal_tiled_canvas)

    def side(self, processor: Any) -> int:
        """Tokens along one side of a tile."""
        return int(processor.image_seq_length**0.5)

    def lengths(self, processor: Any, ids: Tensor) -> list[int]:
        """Visual tokens of every image."""
        return self.runs(processor, ids)

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        images, side, found = processor.image_processor, self.side(processor), []
        tile = images.size["height"], images.size["width"]
        for picture, ((width, height), length) in enumerate(zip(sizes, self.lengths(processor, ids), strict=True)):
            if (count := length // side**2 - 1) > 0:
                # The bounds may be a recipe's: what says how many tiles there are is the number of tokens.
                columns, rows = self.canvas((height, width), tile, images.min_patches, count)
                if columns * rows != count:
                    columns, rows = self.canvas((height, width), tile, images.min_patches, images.max_patches)
                found += cut(picture, rows, columns, side)
            found.append(Tile(picture, side, side))
        return found

    def video_tiles(self, processor: Any, frames: Sequence[int], inputs: Mapping[str, Any]) -> list[Tile]:
        return frames_of(sum(frames), self.side(processor))

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """Bounds on the pixels of all tiles together; the whole image comes on top."""
        tile = image_processor.size["height"] * image_processor.size["width"]
        low = {} if min_pixels is None else {"min_patches": -(-min_pixels // tile)}
        return low if max_pixels is None else low | {"max_patches": max(max_pixels // tile, 1)}

    def patches_per_token(self, config: Any) -> int:
        return round(config.downsample_ratio**-2)

    def most_tokens(self, config: Any, max_pixels: int | None) -> int | None:
        tiles = max((max_pixels or 0) // side_of(config.vision_config.image_size) ** 2, 1)
        return None if max_pixels is None else (tiles + (tiles > 1)) * config.image_seq_length
