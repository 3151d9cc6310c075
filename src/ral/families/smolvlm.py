"""SmolVLM: as Idefics 3. A video is a row of whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ral.families.idefics3 import Idefics3
from ral.families.tiles import Tile, frames_of


class SmolVLM(Idefics3):
    types = ("smolvlm",)
    reads_video = True
    mixes_media = False

    def whole(self, processor: Any) -> str:
        return processor.global_image_token  # type: ignore[no-any-return]

    def video_tiles(self, processor: Any, frames: Sequence[int], inputs: Mapping[str, Any]) -> list[Tile]:
        return frames_of(sum(frames), int(processor.image_seq_len**0.5))
