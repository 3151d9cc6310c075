"""Models whose images are one square of visual tokens each, which they are resized to."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from ral.families.family import Family, Sizes, side_of
from ral.families.tiles import WHOLE, Tile


class Square(Family):
    """The processor resizes an image to the square, whatever its shape is."""

    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        pictures = enumerate(zip(sizes, self.runs(processor, ids), strict=True))
        return [Tile(picture, isqrt(n), isqrt(n), self.shown(processor, size)) for picture, (size, n) in pictures]

    def shown(self, processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """What of a picture of this (width, height) the square shows, as `Tile.box`."""
        return WHOLE

    def patches_per_token(self, config: Any) -> int:
        return self._patches(config) // self.most_tokens(config, None)

    def most_tokens(self, config: Any, max_pixels: int | None) -> int:
        """Every image has the same, which a configuration names where they are pooled."""
        return getattr(config, "mm_tokens_per_image", None) or self._patches(config)

    def _patches(self, config: Any) -> int:
        sizes = config.vision_config
        return (side_of(sizes.image_size) // side_of(sizes.patch_size)) ** 2  # type: ignore[no-any-return]
