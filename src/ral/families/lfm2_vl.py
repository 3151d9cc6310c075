"""LFM2-VL: tiles, each behind a token that says its row and column, then the whole image in its own shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ral.families.family import Family, Sizes
from ral.families.tiles import Tile, cut, pictures


class Lfm2Vl(Family):
    types = ("lfm2_vl",)
    has_geometry = True
    _place = re.compile(r"<\|img_row_(\d+)_col_(\d+)\|>")

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        each = processor.image_processor.downsample_factor
        shapes = [(-(-int(h) // each), -(-int(w) // each)) for h, w in inputs["spatial_shapes"]]
        found: list[Tile] = []
        for picture, own in enumerate(pictures(processor, ids, processor.image_start_token)):
            places = self._place.findall(processor.tokenizer.decode(own, skip_special_tokens=False))
            if places:
                rows, columns = map(int, places[-1])
                found += cut(picture, rows, columns, shapes[0][0])
                del shapes[: len(places)]
            if not places or processor.image_processor.use_thumbnail:
                found.append(Tile(picture, *shapes.pop(0)))
        return found
