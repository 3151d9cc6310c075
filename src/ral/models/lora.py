"""Builds a recipe's adapter from its settings."""

from __future__ import annotations

from typing import Any, Protocol

from peft import LoraConfig
from transformers import PreTrainedModel

from ral.attention.models import has_vision
from ral.errors import refused_by


class Adapted(Protocol):
    """Any settings with the key `peft`, such as a recipe; None trains all weights."""

    @property
    def peft(self) -> dict[str, Any] | None: ...


def lora_config(task: Adapted, model: PreTrainedModel, freeze_vision: bool) -> LoraConfig | None:
    """The adapter that a task trains, if it trains one; a frozen vision tower is left out unless the task says where.

    Raises ConfigError for settings that PEFT refuses.
    """
    if task.peft is None:
        return None
    outside = {"exclude_modules": r".*\bvisual\b.*"} if freeze_vision and has_vision(model) else {}
    with refused_by("peft", "peft"):
        return LoraConfig(**outside | task.peft)
