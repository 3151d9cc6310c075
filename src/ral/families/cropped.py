"""LLaVA, DeepSeek-VL and Janus: an image is one square of visual tokens, cropped or padded to it."""

from __future__ import annotations

from typing import Any, ClassVar

from ral.families.square import Square
from ral.families.tiles import WHOLE


def centred(width: float, height: float) -> tuple[float, float, float, float]:
    """The box of this width and height in the middle of a picture."""
    return 0.5 - width / 2, 0.5 - height / 2, 0.5 + width / 2, 0.5 + height / 2


class Llava(Square):
    """The shorter edge is resized to that of the square; of the longer one the middle is shown."""

    types: ClassVar[tuple[str, ...]] = ("llava",)

    def shown(self, processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
        images = processor.image_processor
        if not (images.do_center_crop and images.size.shortest_edge):
            return WHOLE
        scale = images.size["shortest_edge"] / min(size)
        return centred(images.crop_size["width"] / (size[0] * scale), images.crop_size["height"] / (size[1] * scale))


class Padded(Square):
    """DeepSeek-VL and Janus: the image stands in the middle of the square."""

    types = ("deepseek_vl", "janus")

    def placeholder(self, processor: Any) -> int:
        return processor.tokenizer.convert_tokens_to_ids(processor.image_token)  # type: ignore[no-any-return]

    def shown(self, processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
        return centred(max(size) / size[0], max(size) / size[1])
