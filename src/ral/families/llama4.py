"""Llama 4: chunked attention, and queries scaled by their place in the row, which packing would change."""

from __future__ import annotations

from typing import Any

from ral.families.family import Family


class Llama4(Family):
    types = ("llama4", "llama4_text")
    never_adapted = r".*\.router"  # a linear layer that gives two tensors

    def placeholders(self, config: Any) -> dict[str, int]:
        return {"image": config.image_token_index} if hasattr(config, "vision_config") else {}

    def unshareable(self, config: Any) -> str | None:
        tuned = config.get_text_config().attn_temperature_tuning
        return "its queries are scaled by their place in the row" if tuned else super().unshareable(config)
