"""Vision models for which transformers' interfaces are enough."""

from __future__ import annotations

from typing import ClassVar

from ral.families.family import Family


class Plain(Family):
    """Images of several sizes or tiles, whose order is not known here."""

    types: ClassVar[tuple[str, ...]] = (
        "ernie4_5_vl_moe",
        "exaone4_5",
        "kimi_k25",
        "minicpmv4_6",
        "video_llama_3",
    )
