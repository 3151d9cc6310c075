"""Vision models for which transformers' interfaces are enough."""

from __future__ import annotations

from typing import Any, ClassVar

from ral.families.family import Family


class Square(Family):
    """Every image is one square of visual tokens, of one size."""

    types = ("llava", "deepseek_vl", "janus")


class Plain(Family):
    """Images of several sizes or tiles, whose order is not known here."""

    types: ClassVar[tuple[str, ...]] = (
        "aya_vision",
        "cohere2_vision",
        "ernie4_5_vl_moe",
        "exaone4_5",
        "glm46v",
        "glm4v",
        "glm4v_moe",
        "kimi_k25",
        "lfm2_vl",
        "llava_next",
        "minicpmv4_6",
        "video_llama_3",
    )


class Ovis2(Plain):
    types = ("ovis2",)

    def banned(self, config: Any) -> set[int]:
        return super().banned(config) | set(config.visual_indicator_token_ids)
