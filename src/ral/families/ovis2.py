"""Ovis 2: the whole image, then its tiles, with a token between columns and one between rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ral.families.family import Family, Sizes
from ral.families.tiles import Tile, count, cut, pictures


class Ovis2(Family):
    types = ("ovis2",)
    has_geometry = True

    def banned(self, config: Any) -> set[int]:
        return super().banned(config) | set(config.visual_indicator_token_ids)

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        side, found = int(processor.image_seq_length**0.5), []
        for picture, own in enumerate(pictures(processor, ids, "<IMG_START>")):
            found.append(Tile(picture, side, side))
            rows = 1 + count(processor, own, "<IMG_ROW>")
            columns = 1 + count(processor, own, "<IMG_COL>") // rows
            found += cut(picture, rows, columns, side) if rows * columns > 1 else []
        return found
