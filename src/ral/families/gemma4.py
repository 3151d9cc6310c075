"""Gemma 4: images and frames in their own shape, whose tokens may see each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ral.families.family import Sizes
from ral.families.gemma import Gemma3
from ral.families.tiles import Tile


class Gemma4(Gemma3):
    """The tokens of each image see each other if the configuration says so."""

    types = ("gemma4",)
    box_space = "thousandths_yx"
    reads_video = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        return self._grids(inputs["image_position_ids"], processor.image_processor)

    def video_tiles(self, processor: Any, frames: Sequence[int], inputs: Mapping[str, Any]) -> list[Tile]:
        return self._grids(inputs["video_position_ids"], processor.video_processor)

    def _grids(self, places: Tensor, processor: Any) -> list[Tile]:
        """From the column and row `[pictures, patches, 2]` of every patch; so many patches a side make a token."""
        shapes = [(found.amax(dim=0) + 1) // processor.pooling_kernel_size for found in places]
        return [Tile(picture, int(rows), int(columns)) for picture, (columns, rows) in enumerate(shapes)]

    def filler(self, name: str) -> float:
        """A patch at -1 is padding."""
        return -1.0 if name.endswith("position_ids") else 0.0

    def together(self, base: Any, input_ids: Tensor) -> Tensor | None:
        seen = base.config.get_text_config().use_bidirectional_attention == "vision"
        return super().together(base, input_ids) if seen else None
