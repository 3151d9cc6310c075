"""Finds the family of a model by its configuration or its processor."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from ral.families.cohere2_vision import AyaVision, Cohere2Vision
from ral.families.cropped import Llava, Padded
from ral.families.family import Family
from ral.families.gemma import Gemma3, PaliGemma
from ral.families.gemma4 import Gemma4
from ral.families.idefics3 import Idefics3
from ral.families.internvl import InternVL
from ral.families.lfm2_vl import Lfm2Vl
from ral.families.llama4 import Llama4
from ral.families.llava_next import LlavaNext
from ral.families.llava_onevision import LlavaOnevision
from ral.families.mistral3 import Mistral3
from ral.families.ovis2 import Ovis2
from ral.families.plain import Grids, Plain
from ral.families.qwen_vl import GLM4V, Qwen2_5VL, Qwen2VL, Qwen3VL
from ral.families.smolvlm import SmolVLM
from ral.families.text import Mamba, Sinks, Text

_BY_TYPE: dict[str, Family] = {}
_UNKNOWN = Family()


def register(family: Family) -> None:
    """Make a family known; of two that name the same model type the later one counts."""
    _BY_TYPE.update(dict.fromkeys(family.types, family))


for _kind in (
    *(Text, Mamba, Sinks, Llama4, Gemma3, Gemma4, PaliGemma),
    *(
        Qwen2VL,
        Qwen2_5VL,
        Qwen3VL,
        GLM4V,
        Llava,
        Padded,
        Plain,
        Grids,
        Ovis2,
        Lfm2Vl,
        InternVL,
        Cohere2Vision,
        AyaVision,
    ),
    *(Idefics3, SmolVLM, LlavaOnevision, LlavaNext, Mistral3),
):
    register(_kind())


def known_types() -> tuple[str, ...]:
    """The model types (`config.model_type`) of all families."""
    return tuple(_BY_TYPE)


def family_of(config: Any) -> Family:
    """The family of a model with this configuration; the defaults where none names its type."""
    return _BY_TYPE.get(config.model_type, _UNKNOWN)


def family_of_processor(processor: Any) -> Family:
    """The family whose models a processor is for, by transformers' own table; the defaults for a tokenizer.

    Families that share a processor (Qwen3-VL and Qwen3.5) share what concerns it.
    """
    name = type(processor).__name__
    for kind, family in _BY_TYPE.items():
        if name in (*family.processors, PROCESSOR_MAPPING_NAMES.get(kind)):
            return family
    return _UNKNOWN
