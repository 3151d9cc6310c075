"""InternVL: tiles of an image, then the whole image."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from ral.families.family import Family, Sizes, side_of
from ral.families.tiles import Tile, cut


class InternVL(Family):
    """Tiles of one size, behind which follows the whole image, as large as a tile."""

    types = ("internvl",)
    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes) -> list[Tile]:
        images, side = processor.image_processor, int(processor.image_seq_length**0.5)
        tile, found = (images.size["height"], images.size["width"]), []
        for picture, ((width, height), length) in enumerate(zip(sizes, self.runs(processor, ids), strict=True)):
            if (count := length // side**2 - 1) > 0:
                # The bounds may be a recipe's: what says how many tiles there are is the number of tokens.
                columns, rows = get_optimal_tiled_canvas((height, width), tile, images.min_patches, count)
                if columns * rows != count:
                    columns, rows = get_optimal_tiled_canvas(
                        (height, width), tile, images.min_patches, images.max_patches
                    )
                found += cut(picture, rows, columns, side)
            found.append(Tile(picture, side, side))
        return found

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """Bounds on the pixels of all tiles together; the whole image comes on top."""
        tile = image_processor.size["height"] * image_processor.size["width"]
        low = {} if min_pixels is None else {"min_patches": -(-min_pixels // tile)}
        return low if max_pixels is None else low | {"max_patches": max(max_pixels // tile, 1)}

    def patches_per_token(self, config: Any) -> int:
        return round(config.downsample_ratio**-2)

    def most_tokens(self, config: Any, max_pixels: int | None) -> int | None:
        if max_pixels is None:
            return None
        tiles = max(max_pixels // side_of(config.vision_config.image_size) ** 2, 1)
        return (tiles + (tiles > 1)) * config.image_seq_length  # type: ignore[no-any-return]
