"""Llama 4: tiles and the whole image; chunked attention, and queries scaled by their place, which packing would change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.llama4.image_processing_llama4 import get_max_res_without_distortion

from ral.families.family import Family, Sizes
from ral.families.tiles import Tile, count, cut, pictures


class Llama4(Family):
    """Each row of tiles is closed by a token, and the whole image follows."""

    types = ("llama4", "llama4_text")
    never_adapted = r".*\.router"  # a linear layer that gives two tensors
    has_geometry = True

    def placeholders(self, config: Any) -> dict[str, int]:
        return {"image": config.image_token_index} if hasattr(config, "vision_config") else {}

    def features(self, model: Any, base: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The processor writes pixels in bfloat16, whatever the model's precision is."""
        pixels = inputs.get("pixel_values")
        cast = {} if pixels is None else {"pixel_values": pixels.to(base.dtype)}
        return super().features(model, base, {**inputs, **cast})

    def unshareable(self, config: Any) -> str | None:
        tuned = config.get_text_config().attn_temperature_tuning
        return "its queries are scaled by their place in the row" if tuned else super().unshareable(config)

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        found: list[Tile] = []
        parts = pictures(processor, ids, processor.start_of_img_token)
        for picture, (own, size) in enumerate(zip(parts, sizes, strict=True)):
            rows = count(processor, own, processor.tile_global_token)
            columns = 1 + count(processor, own, processor.tile_token) // max(rows, 1)
            side = int((count(processor, own, processor.img_patch_token) / (rows * columns + 1)) ** 0.5)
            found += cut(picture, max(rows, 1), columns, side, self._canvas(processor, size, max(rows, 1), columns))
            found += [Tile(picture, side, side)] if rows else []
        return found

    @staticmethod
    def _canvas(processor: Any, size: tuple[int, int], rows: int, columns: int) -> tuple[float, float]:
        """Width and height of the tiles in shares of the picture's: it keeps its shape, and is enlarged to one tile at most."""
        (width, height), images = size, processor.image_processor
        edge = images.size["height"]
        target = edge * rows, edge * columns
        bound = target
        if not images.resize_to_max_canvas:
            bound = min(max(height, edge), target[0]), min(max(width, edge), target[1])
        tall, wide = get_max_res_without_distortion((height, width), bound)
        return target[1] / max(wide, 1), target[0] / max(tall, 1)
