"""Text models for which transformers' interfaces are enough, and two that cannot share a prompt."""

from __future__ import annotations

from typing import Any

from ral.families.family import Family


class Text(Family):
    """Full, sliding-window or chunked attention, mixtures of experts, compressed keys, and layers that carry a state."""

    types = (
        "bamba",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5",
        "exaone4",
        "falcon_h1",
        "gemma2",
        "gemma3_text",
        "glm4",
        "glm4_moe",
        "granite",
        "granitemoehybrid",
        "hunyuan_v1_dense",
        "kimi_linear",
        "lfm2",
        "llama",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron_h",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "seed_oss",
        "smollm3",
        "starcoder2",
    )


class Sinks(Family):
    types = ("gpt_oss",)

    def unshareable(self, config: Any) -> str | None:
        return "every head has a sink, which SDPA does not know"
