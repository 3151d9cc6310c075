"""LLaVA-NeXT: as LLaVA-OneVision, with a finer grid of each of several images, and without video."""

from __future__ import annotations

from typing import Any

from ral.families.llava_onevision import LlavaOnevision


class LlavaNext(LlavaOnevision):
    types = ("llava_next",)
    reads_video = False

    def side(self, processor: Any) -> int:
        return self.tile_edge(processor.image_processor) // processor.patch_size  # type: ignore[no-any-return]

    def tile_edge(self, images: Any) -> int:
        return images.size["shortest_edge"]  # type: ignore[no-any-return]
