"""Command A Vision and Aya Vision: as InternVL, with tokens of text around every tile, and without video."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

from ral.families.internvl import InternVL
from ral.families.tiles import pictures


class Cohere2Vision(InternVL):
    """A token that is text closes every tile."""

    types: ClassVar[tuple[str, ...]] = ("cohere2_vision",)
    box_space = None
    reads_video = False
    canvas: ClassVar[Any] = staticmethod(get_optimal_tiled_canvas)

    def side(self, processor: Any) -> int:
        return int(processor.patch_size)

    def start(self, processor: Any) -> str:
        """The token that opens an image."""
        return processor.boi_token  # type: ignore[no-any-return]

    def lengths(self, processor: Any, ids: Tensor) -> list[int]:
        images = pictures(processor, ids, self.start(processor))
        return [int((image == processor.image_token_id).sum()) for image in images]


class AyaVision(Cohere2Vision):
    """A token that is text stands before every tile."""

    types = ("aya_vision",)
    canvas = staticmethod(InternVL.canvas)

    def side(self, processor: Any) -> int:
        return int(processor.img_size // processor.patch_size)

    def start(self, processor: Any) -> str:
        return processor.start_of_img_token  # type: ignore[no-any-return]
