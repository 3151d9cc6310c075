"""Models and processors by name, for training and for evaluation."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import is_bitsandbytes_available

from ral.attention.models import trains_vision, vision_tower
from ral.errors import ConfigError, UsageError, refused_by
from ral.runs.names import FINAL


def load_model(
    name: str | Path, quantization: Mapping[str, Any] | None = None, dtype: torch.dtype | Literal["auto"] = "auto"
) -> PreTrainedModel:
    """A model from a folder or a hub id, in the dtype it was saved in unless another is given.

    A run folder gives its `final/`; a folder with an adapter gives the adapter's base model with the adapter merged into
    its weights. `quantization` holds settings of `BitsAndBytesConfig`.

    Raises ConfigError: quantisation without bitsandbytes, or of a model with an adapter.
    """
    folder = _final(name)
    base = _adapted(folder)
    if quantization is not None:
        _refuse_quantization(folder, adapted=base is not None)
    if base is not None:
        _refuse_pickles(folder)
        # Not by transformers' own loading of adapters, which drops the magnitudes of DoRA.
        whole = load_model(base, dtype=dtype)
        with refused_by("peft", folder):
            model: Any = PeftModel.from_pretrained(whole, folder).merge_and_unload()
        model.name_or_path = folder  # what an adapter that is trained on it is an adapter of
        return model
    loader: Any = AutoModelForImageTextToText if _has_vision(folder) else AutoModelForCausalLM
    with refused_by("transformers", folder):
        settings = {} if quantization is None else {"quantization_config": BitsAndBytesConfig(**quantization)}
        return loader.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **settings)


def load_policy(folder: Path) -> PreTrainedModel | PeftModel:
    """What was being trained, from the folder it was saved to: an adapter stays one, on its base model."""
    base = _adapted(str(folder))
    if base is None:
        return load_model(folder)
    whole = load_model(base)
    with refused_by("peft", folder):
        return PeftModel.from_pretrained(whole, str(folder), is_trainable=True)


def training_dtype(adapter: bool) -> torch.dtype | Literal["auto"]:
    """What a model is loaded in to be trained: float32 where its own weights are trained.

    In bfloat16, with eight bits of precision, updates of a learning rate of 1e-5 round away; mixed precision (`bf16: true`)
    computes in bfloat16 on float32 weights. Under an adapter the frozen weights stay in the dtype they were saved in.
    """
    return "auto" if adapter else torch.float32


def load_processor(name: str | Path) -> Any:
    """The processor (or, of a text model, the tokenizer) of what `load_model` loads."""
    with refused_by("transformers", name):
        return AutoProcessor.from_pretrained(_final(name), trust_remote_code=False)


def prompt_budget(name: str | Path) -> int | None:
    """Tokens that the model's positions reach, by its configuration; None if it does not say."""
    return getattr(load_config(name).get_text_config(), "max_position_embeddings", None)


def load_config(name: str | Path) -> Any:
    """The configuration of what `load_model` loads; of an adapter, its base model's."""
    return _config(_final(name))


def export(name: str | Path, output: Path) -> None:
    """Write what `load_model` makes of an adapter, all its weights, and its processor to the folder `output`.

    Raises UsageError: no adapter in `name`, or a folder that is not empty.
    """
    folder = _final(name)
    if _adapted(folder) is None:
        raise UsageError(
            f"{folder}: holds no adapter; its weights are whole as they are, and can be loaded from there."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: is not an empty folder; choose another one to write the model to.")
    load_model(folder).save_pretrained(output)
    load_processor(folder).save_pretrained(output)


def freeze_vision(model: PreTrainedModel) -> None:
    """Keep the vision tower and its projector as they are; nothing of a text model."""
    vision_tower(model).requires_grad_(False)


def refuse_adapter_of_frozen_vision(model: PreTrainedModel, keeps_vision: bool) -> None:
    """Raise ConfigError where an adapter would train the vision tower that is to stay as it is."""
    if keeps_vision and trains_vision(model):
        raise ConfigError(
            "peft_config adapts the vision tower, but freeze_vision=True keeps it as it is; "
            "set exclude_modules='.*visual.*' in the peft_config, or freeze_vision=False"
        )


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def frozen_copy(model: nn.Module) -> nn.Module:
    return frozen(copy.deepcopy(model))


def _final(name: str | Path) -> str:
    final = Path(name) / FINAL
    return str(final if final.is_dir() else name)


def _adapted(folder: str) -> str | None:
    """The name of the model that the adapter in `folder` is for; None of a folder without an adapter."""
    file = Path(folder) / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"] if file.is_file() else None


def _config(folder: str) -> Any:
    if (base := _adapted(folder)) is not None:
        return _config(base)
    try:
        with refused_by("transformers", folder):
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ConfigError as error:
        if "custom code" not in str(error):
            raise
        raise ConfigError(
            f"{folder}: the model comes with code of its own, which is never run; use a model type that transformers knows"
        ) from error


def _has_vision(folder: str) -> bool:
    return hasattr(_config(folder), "vision_config")


def _refuse_pickles(folder: str) -> None:
    """Other formats than safetensors run what their author wrote when they are read."""
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ConfigError(
            f"{folder}: holds an adapter without adapter_model.safetensors; other formats can run code and are not read. "
            "Save the adapter again with a current peft."
        )


def _refuse_quantization(folder: str, adapted: bool) -> None:
    if adapted:
        raise ConfigError(
            f"{folder}: holds an adapter, which cannot be merged into quantised weights; write the whole model with "
            "`ral export` and start from that."
        )
    if not is_bitsandbytes_available():
        raise ConfigError(
            "quantization needs the package bitsandbytes, which is not installed: pip install 'ral[qlora]'."
        )
