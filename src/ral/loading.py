"""Models and processors by name, for training and for evaluation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel


def load_model(name: str | Path) -> PreTrainedModel:
    """A model in the dtype it was saved in, from a folder or a hub id.

    A run folder gives its `final/`; a folder with an adapter gives its base model with the adapter on it.
    """
    folder = _final(name)
    adapter = Path(folder) / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.is_file() else folder
    has_vision = hasattr(AutoConfig.from_pretrained(base), "vision_config")
    loader: Any = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype="auto")


def load_processor(name: str | Path) -> Any:
    """The processor (or, of a text model, the tokenizer) of what `load_model` loads."""
    return AutoProcessor.from_pretrained(_final(name))


def prompt_budget(name: str | Path) -> int | None:
    """Tokens that the model's positions reach, by its configuration; None if it does not say."""
    return getattr(AutoConfig.from_pretrained(_final(name)).get_text_config(), "max_position_embeddings", None)


def _final(name: str | Path) -> str:
    final = Path(name) / "final"
    return str(final if final.is_dir() else name)


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def frozen_copy(model: nn.Module) -> nn.Module:
    return frozen(copy.deepcopy(model))
