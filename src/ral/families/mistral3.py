"""Mistral 3: one grid per image, in the image's own shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ral.families.family import Family, Sizes, runs
from ral.families.tiles import Tile


class Mistral3(Family):
    """Pixtral's tower: one grid of an image's own shape, whose rows end in a token that is text."""

    types = ("mistral3",)
    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile]:
        ends = (ids == processor.image_end_token_id).nonzero()[:, 0] + 1
        images = torch.tensor_split(ids, ends.tolist())[:-1]
        rows = [runs(image == processor.image_token_id) for image in images]
        return [Tile(picture, len(lengths), lengths[0]) for picture, lengths in enumerate(rows)]

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The longest edge of a square of so many pixels."""
        self._unbounded(min_pixels)
        return {} if max_pixels is None else {"size": {"longest_edge": int(max_pixels**0.5)}}
