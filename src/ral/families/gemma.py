"""Gemma 3, Gemma 4 and PaliGemma: image tokens, or all prompt tokens, see each other in both directions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import pad

from ral.families.plain import Square


class Gemma3(Square):
    """The tokens of each image see each other."""

    types: ClassVar[tuple[str, ...]] = ("gemma3",)

    def together(self, base: Any, input_ids: Tensor) -> Tensor | None:
        image = input_ids == base.config.image_token_id
        starts = image & ~pad(image, (1, 0))[:-1]
        return (starts.cumsum(0) - 1).masked_fill(~image, -1)

    def placeholder(self, processor: Any) -> int:
        return processor.tokenizer.image_token_id  # type: ignore[no-any-return]  # the processor's own is what opens an image


class Gemma4(Gemma3):
    """The tokens of each image see each other if the configuration says so. The pooling of patches into tokens is not known here."""

    types = ("gemma4",)
    has_geometry = False

    def tiles(self, processor: Any, ids: Tensor, sizes: Any) -> None:
        return None

    def filler(self, name: str) -> float:
        """A patch at -1 is padding."""
        return -1.0 if name.endswith("position_ids") else 0.0

    def together(self, base: Any, input_ids: Tensor) -> Tensor | None:
        seen = base.config.get_text_config().use_bidirectional_attention == "vision"
        return super().together(base, input_ids) if seen else None


class PaliGemma(Square):
    """All tokens of a prompt see each other, and positions count from 1."""

    types = ("paligemma",)

    def positions(self, base: Any, input_ids: Tensor, inputs: Any) -> Tensor:
        return super().positions(base, input_ids, inputs) + 1

    def together(self, base: Any, input_ids: Tensor) -> Tensor | None:
        return input_ids.new_zeros(len(input_ids))

    def per_token(self, base: Any, ids: Tensor, in_prompt: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (~in_prompt).long()}
