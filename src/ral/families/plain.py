"""Vision models for which transformers' interfaces are enough."""

from __future__ import annotations

from math import isqrt
from typing import Any, ClassVar

from torch import Tensor

from ral.families.family import Family, Sizes, side_of
from ral.families.tiles import Tile


class Square(Family):
    """Every image is one square of visual tokens."""

    types: ClassVar[tuple[str, ...]] = ("llava", "deepseek_vl", "janus")
    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes) -> list[Tile] | None:
        return [Tile(picture, isqrt(n), isqrt(n)) for picture, n in enumerate(self.runs(processor, ids))]

    def patches_per_token(self, config: Any) -> int:
        return self._patches(config) // self.most_tokens(config, None)

    def most_tokens(self, config: Any, max_pixels: int | None) -> int:
        """Every image has the same, which a configuration names where they are pooled."""
        return getattr(config, "mm_tokens_per_image", None) or self._patches(config)

    def _patches(self, config: Any) -> int:
        sizes = config.vision_config
        return (side_of(sizes.image_size) // side_of(sizes.patch_size)) ** 2  # type: ignore[no-any-return]


class Plain(Family):
    """Images of several sizes or tiles, whose order is not known here."""

    types: ClassVar[tuple[str, ...]] = (
        "aya_vision",
        "cohere2_vision",
        "ernie4_5_vl_moe",
        "exaone4_5",
        "kimi_k25",
        "lfm2_vl",
        "llava_next",
        "minicpmv4_6",
        "video_llama_3",
    )


class Ovis2(Plain):
    types = ("ovis2",)

    def banned(self, config: Any) -> set[int]:
        return super().banned(config) | set(config.visual_indicator_token_ids)
