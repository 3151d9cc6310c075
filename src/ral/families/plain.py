"""Vision models for which transformers' interfaces are enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ral.families.family import Family, Sizes
from ral.families.tiles import Tile


class Plain(Family):
    """Images whose grids or slices are not known here."""

    types: ClassVar[tuple[str, ...]] = ("kimi_k25", "minicpmv4_6")


class Grids(Family):
    """Every image is one grid of patches, so many of which on each side make a token."""

    types: ClassVar[tuple[str, ...]] = ("ernie4_5_vl_moe", "exaone4_5", "video_llama_3")
    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        merge = processor.image_processor.merge_size
        return [Tile(n, int(h) // merge, int(w) // merge) for n, (_, h, w) in enumerate(inputs["image_grid_thw"])]
