"""Builds a recipe's adapter from its settings."""

from __future__ import annotations

import re
from typing import Any, Protocol

from peft import LoraConfig
from transformers import PreTrainedModel

from ral.attention.models import family, has_vision, vision_tower
from ral.errors import refused_by


class Adapted(Protocol):
    """Any settings with the key `peft`, such as a recipe; None trains all weights."""

    @property
    def peft(self) -> dict[str, Any] | None: ...


def lora_config(task: Adapted, model: PreTrainedModel, freeze_vision: bool) -> LoraConfig | None:
    """The adapter that a task trains, if it trains one.

    A frozen vision tower is left out, and what the model's family never adapts, unless the task says what to leave out.

    Raises ConfigError for settings that PEFT refuses.
    """
    if task.peft is None:
        return None
    tower = tower_pattern(model) if freeze_vision and has_vision(model) else None
    outside = [pattern for pattern in (tower, family(model).never_adapted) if pattern is not None]
    with refused_by("peft", "peft"):
        return LoraConfig(**({"exclude_modules": "|".join(outside)} if outside else {}) | task.peft)


def tower_pattern(model: PreTrainedModel) -> str:
    """A pattern for `exclude_modules` that matches the vision tower and projector of a model, and nothing of its decoder."""
    parts = {id(part) for part in vision_tower(model).children()}
    names = [re.escape(name) for name, module in model.named_modules() if id(module) in parts]
    return rf"({'|'.join(names)})(\..*)?"
