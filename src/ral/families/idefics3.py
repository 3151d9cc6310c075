"""Idefics 3: tiles of an image with their places in words, then the whole image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ral.families.family import Family, Sizes
from ral.families.tiles import Tile, cut


class Idefics3(Family):
    """Tiles of one size, each behind a token that says its row and column, and then the whole image."""

    types: ClassVar[tuple[str, ...]] = ("idefics3",)
    has_geometry = True
    _place = re.compile(r"<row_(\d+)_col_(\d+)>")

    def whole(self, processor: Any) -> str:
        """The token before the whole image."""
        return processor.global_image_tag  # type: ignore[no-any-return]

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        side = int(processor.image_seq_len**0.5)
        text = processor.tokenizer.decode(ids, skip_special_tokens=False)
        found: list[Tile] = []
        for picture, part in enumerate(text.split(self.whole(processor))[:-1]):
            if places := self._place.findall(part):
                rows, columns = map(int, places[-1])
                found += cut(picture, rows, columns, side)
            found.append(Tile(picture, side, side))
        return found

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The longest edge of a square of so many pixels, in whole tiles."""
        self._unbounded(min_pixels)
        tile = image_processor.max_image_size["longest_edge"]
        return {} if max_pixels is None else {"size": {"longest_edge": max(int(max_pixels**0.5) // tile, 1) * tile}}

    def patches_per_token(self, config: Any) -> int:
        return config.scale_factor**2  # type: ignore[no-any-return]

    def most_tokens(self, config: Any, max_pixels: int | None) -> int | None:
        if max_pixels is None:
            return None
        sizes = config.vision_config
        tiles = max(int(max_pixels**0.5) // sizes.image_size, 1) ** 2
        each = (sizes.image_size // sizes.patch_size) ** 2 // self.patches_per_token(config)
        return (tiles + (tiles > 1)) * each  # type: ignore[no-any-return]
