"""Gemma 3 and PaliGemma: image tokens, or all prompt tokens, see each other in both directions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import pad

from ral.families.square import Square


class Gemma3(Square):
    """The tokens of each image (and frame) see each other."""

    types: ClassVar[tuple[str, ...]] = ("gemma3",)

    def together(self, base: Any, input_ids: Tensor) -> Tensor | None:
        image = self.kinds(base.config, input_ids) > 0
        starts = image & ~pad(image, (1, 0))[:-1]
        return (starts.cumsum(0) - 1).masked_fill(~image, -1)

    def placeholder(self, processor: Any) -> int:
        return processor.tokenizer.image_token_id  # type: ignore[no-any-return]  # the processor's own opens an image


class PaliGemma(Square):
    """All tokens of a prompt see each other, and positions count from 1."""

    types = ("paligemma",)
    box_space = "loc"

    def positions(self, base: Any, input_ids: Tensor, inputs: Any) -> Tensor:
        return super().positions(base, input_ids, inputs) + 1

    def together(self, base: Any, input_ids: Tensor) -> Tensor | None:
        return input_ids.new_zeros(len(input_ids))

    def per_token(self, base: Any, ids: Tensor, in_prompt: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (~in_prompt).long()}
