"""Text models for which transformers' interfaces are enough, and two that cannot share a prompt."""

from __future__ import annotations

from typing import Any

from ral.families.family import Family


class Text(Family):
    """Full, sliding-window or chunked attention, mixtures of experts, compressed keys, and layers that carry a state."""

    types = (
        "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma2", "gemma3_text", "gemma4_text",
        "glm4", "glm4_moe", "granite", "hunyuan_v1_dense", "kimi_linear", "lfm2", "llama", "minimax_m2", "ministral",
        "ministral3", "mistral", "mixtral", "olmo2", "olmo3", "olmo_hybrid", "phi3", "qwen2", "qwen2_moe", "qwen3",
        "qwen3_5_text", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3", "starcoder2",
    )  # fmt: skip


class Mamba(Family):
    """Mamba's kernels take the weight of the last matrix, so an adapter there would be passed by."""

    types = ("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h")
    never_adapted = r".*\.out_proj"


class Sinks(Family):
    types = ("gpt_oss",)

    def unshareable(self, config: Any) -> str | None:
        return "every head has a sink, which SDPA does not know"
