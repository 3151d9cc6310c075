"""Checkpoints in shards: each process writes its own part of the weights (torch's distributed checkpoints)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.fsdp import StateDictType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
)

from ral.models.gathering import fsdp_plugin

#: The folder of a checkpoint in which accelerate saves the shards of a model's weights.
SHARDS = f"{FSDP_MODEL_NAME}_0"


def saves_shards(accelerator: Accelerator) -> bool:
    """Whether each process writes its own part of a checkpoint (`state_dict_type: SHARDED_STATE_DICT`)."""
    fsdp = fsdp_plugin(accelerator)
    return fsdp is not None and fsdp.state_dict_type == StateDictType.SHARDED_STATE_DICT


def save_without_weights(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Write what a model needs beside its weights: configuration, generation settings, processor."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)


def has_shards(folder: Path | str) -> bool:
    return (Path(folder) / SHARDS).is_dir()


def read_shards(folder: Path) -> PreTrainedModel:
    """The whole model of a sharded checkpoint, whatever the number of processes that wrote it.

    torch's description of the shards is a pickle, which can run code: only for checkpoints of one's own.
    """
    config = AutoConfig.from_pretrained(folder)
    auto: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    load({"model": model.state_dict()}, storage_reader=FileSystemReader(folder / SHARDS), no_dist=True)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
