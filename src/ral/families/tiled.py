"""Vision models that show an image as several grids of tokens: tiles, the whole of it, rows that end in a token of their own."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from ral.families.family import Family, Sizes, runs
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
                    columns, rows = get_optimal_tiled_canvas((height, width), tile, images.min_patches, images.max_patches)
                found += cut(picture, rows, columns, side)
            found.append(Tile(picture, side, side))
        return found

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """Bounds on the pixels of all tiles together; the whole image comes on top."""
        tile = image_processor.size["height"] * image_processor.size["width"]
        low = {} if min_pixels is None else {"min_patches": -(-min_pixels // tile)}
        return low if max_pixels is None else low | {"max_patches": max(max_pixels // tile, 1)}


class Idefics3(Family):
    """Idefics 3 and SmolVLM: tiles of one size, each behind a token that says its row and column, and then the whole image."""

    types = ("idefics3", "smolvlm")
    has_geometry = True
    _place = re.compile(r"<row_(\d+)_col_(\d+)>")

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes) -> list[Tile]:
        side = int(processor.image_seq_len**0.5)
        text = processor.tokenizer.decode(ids, skip_special_tokens=False)
        found: list[Tile] = []
        for picture, part in enumerate(text.split(processor.global_image_tag)[:-1]):
            if places := self._place.findall(part):
                found += cut(picture, *map(int, places[-1]), side)
            found.append(Tile(picture, side, side))
        return found

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The longest edge of a square of so many pixels, in whole tiles."""
        self._unbounded(min_pixels)
        tile = image_processor.max_image_size["longest_edge"]
        return {} if max_pixels is None else {"size": {"longest_edge": max(int(max_pixels**0.5) // tile, 1) * tile}}


class LlavaOnevision(Family):
    """The whole image, then a finer grid of it whose rows end in a token that shows nothing."""

    types = ("llava_onevision",)
    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes) -> list[Tile]:
        side, found = int(processor.num_image_tokens**0.5), []
        for picture, (size, length) in enumerate(zip(sizes, self.runs(processor, ids), strict=True)):
            found.append(Tile(picture, side, side))
            rest = length - side**2
            if rest == 1:  # one of several images: no finer grid, and one token behind it
                found.append(Tile(picture, 1, 0, newline=True))
            elif rest:
                rows = next(rows for rows in self._rows(processor, size, side) if rest % rows == 0)
                found.append(Tile(picture, rows, rest // rows - 1, newline=True))
        return found

    @staticmethod
    def _rows(processor: Any, size: tuple[int, int], side: int) -> list[int]:
        """Rows that the picture may have on its canvas of tiles, the bars above and below left out."""
        (width, height), images = size, processor.image_processor
        tall, wide = select_best_resolution((height, width), images.image_grid_pinpoints)
        rows, columns = side * tall // images.size["height"], side * wide // images.size["width"]
        if width / height <= columns / rows:
            return [rows]
        bar = (rows - int(round(height * (columns / width), 7))) // 2
        return [rows - 2 * bar, *range(rows, 0, -1)]


class Mistral3(Family):
    """Pixtral's tower: one grid of an image's own shape, whose rows end in a token that is text."""

    types = ("mistral3",)
    has_geometry = True

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes) -> list[Tile]:
        ends = (ids == processor.image_end_token_id).nonzero()[:, 0] + 1
        images = torch.tensor_split(ids, ends.tolist())[:-1]
        rows = [runs(image == processor.image_token_id) for image in images]
        return [Tile(picture, len(lengths), lengths[0]) for picture, lengths in enumerate(rows)]

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The longest edge of a square of so many pixels."""
        self._unbounded(min_pixels)
        return {} if max_pixels is None else {"size": {"longest_edge": int(max_pixels**0.5)}}
