"""Text models of which transformers says all there is to know."""

from ral.families.family import Family


class Text(Family):
    types = ("qwen2", "qwen3", "llama")
