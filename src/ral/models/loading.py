"""Loads models and processors by name, for training and for evaluation."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import disable_fsdp_ram_efficient_loading, enable_fsdp_ram_efficient_loading
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.utils import is_bitsandbytes_available

from ral.attention.models import trains_vision, vision_tower
from ral.data.templates import chat_template
from ral.errors import ConfigError, UsageError, refused_by
from ral.models.adapters import load_adapter
from ral.models.eos_tokens import write_eos_tokens
from ral.models.lora import tower_pattern
from ral.models.shards import has_shards, read_shards
from ral.models.zero3 import read_whole
from ral.runs.names import FINAL, TRAINING_ARGS

#: Any of them says that a folder holds a processor or a tokenizer.
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")


def load_model(
    name: str | Path, quantization: Mapping[str, Any] | None = None, dtype: torch.dtype | Literal["auto"] = "auto"
) -> PreTrainedModel:
    """A model from a folder or a hub id, in the dtype it was saved in unless another is given.

    A run folder gives its `final/`; a folder with an adapter gives the adapter's base model with the adapter merged into
    its weights. `quantization` holds settings of `BitsAndBytesConfig`.

    Raises ConfigError: quantisation without bitsandbytes, or of a model with an adapter.
    """
    folder = _final(name)
    base = _base_of(folder)
    if quantization is not None:
        _refuse_quantization(folder, adapted=base is not None)
    if base is not None:
        _refuse_pickles(folder)
        # Not by transformers' own loading of adapters, which drops the magnitudes of DoRA.
        policy: Any = load_adapter(_load_base(base, dtype), folder)
        with refused_by("peft", folder):
            merged = policy.merge_and_unload()
        # An adapter that is trained on it remembers this name.
        merged.name_or_path = folder
        return merged
    with refused_by("transformers", folder):
        settings = {} if quantization is None else {"quantization_config": BitsAndBytesConfig(**quantization)}
    return _load_whole(folder, dtype, settings)


def load_policy(folder: Path) -> PreTrainedModel | PeftModel:
    """Load a trained policy from its folder. An adapter stays an adapter on its base model."""
    base = _base_of(str(folder))
    if base is None:
        return load_model(folder)
    return load_adapter(_load_base(base), str(folder), trainable=True)


def training_dtype(adapter: bool) -> torch.dtype | Literal["auto"]:
    """The dtype in which a model is loaded for training: float32 if its own weights are trained.

    In bfloat16, with eight bits of precision, updates of a learning rate of 1e-5 round away; mixed precision (`bf16: true`)
    computes in bfloat16 on float32 weights. Under an adapter the frozen weights stay in the dtype they were saved in.
    """
    return "auto" if adapter else torch.float32


def load_processor(name: str | Path) -> Any:
    """The processor (or, of a text model, the tokenizer) of what `load_model` loads.

    The folder of an adapter need not hold one: its base model's is taken then.
    """
    folder = _final(name)
    base = _base_of(folder)
    _refuse_missing(folder)
    if base is None or any((Path(folder) / file).is_file() for file in _PROCESSOR_FILES):
        with refused_by("transformers", folder):
            return _with_template(AutoProcessor.from_pretrained(folder, trust_remote_code=False), Path(folder))
    if Path(base.name).is_dir():
        return load_processor(base.name)
    with refused_by("transformers", base.name):
        return AutoProcessor.from_pretrained(base.name, revision=base.revision, trust_remote_code=False)


def _with_template(processor: Any, folder: Path) -> Any:
    """Tokenizers do not read the file in which older folders keep the chat template."""
    older = folder / "chat_template.json"
    if chat_template(processor) is None and older.is_file():
        processor.chat_template = json.loads(older.read_text(encoding="utf-8"))["chat_template"]
    return processor


def prompt_budget(name: str | Path) -> int | None:
    """Tokens that the model's positions reach, by its configuration; None if it does not say."""
    return getattr(load_config(name).get_text_config(), "max_position_embeddings", None)


def load_config(name: str | Path) -> Any:
    """The configuration of what `load_model` loads; of an adapter, its base model's."""
    return _config(_final(name))


def export(name: str | Path, output: Path) -> None:
    """Merge an adapter as `load_model` does, or put a sharded checkpoint together; write the whole model and its processor.

    The folder `output` appears complete or not at all.

    Raises UsageError: neither an adapter nor shards in `name`, or a folder that is not empty.
    """
    folder = _final(name)
    in_shards = has_shards(folder)
    if _base_of(folder) is None and not in_shards:
        raise UsageError(
            f"{folder}: holds no adapter and no shards; its weights are whole as they are, and can be loaded from there."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: is not an empty folder; choose another one to write the model to.")
    model, processor = read_shards(Path(folder)) if in_shards else load_model(folder), load_processor(folder)
    unfinished = output.absolute().with_name(f".{output.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write_eos_tokens(model, processor)
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        if (settings := Path(folder) / TRAINING_ARGS).is_file():
            shutil.copy(settings, unfinished)  # `ral eval` asks as the run did
        if output.exists():
            output.rmdir()  # it is empty
        unfinished.replace(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def freeze_vision(model: PreTrainedModel) -> None:
    """Keep the vision tower and its projector as they are; nothing of a text model."""
    vision_tower(model).requires_grad_(False)


def refuse_adapter_of_frozen_vision(model: PreTrainedModel, keeps_vision: bool) -> None:
    """Raise ConfigError where an adapter would train the vision tower that is to stay as it is."""
    if keeps_vision and trains_vision(model):
        raise ConfigError(
            "peft_config adapts the vision tower, but freeze_vision=True keeps it as it is; "
            f"set exclude_modules={tower_pattern(model)!r} in the peft_config, or freeze_vision=False"
        )


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def frozen_copy(model: nn.Module) -> nn.Module:
    return frozen(copy.deepcopy(model))


def _final(name: str | Path) -> str:
    """The `final` folder of a run folder, absolute; a hub id unchanged."""
    if not Path(name).is_dir():
        return str(name)
    final = Path(name).absolute() / FINAL
    return str(final if final.is_dir() else final.parent)


#: What the hub takes for a name: one, or an owner's.
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _refuse_missing(name: str) -> None:
    """Raise ConfigError for a folder that is not there, so that the hub is not asked for it.

    A name is a folder's if the hub has no such names, or if it starts in a folder of the working directory; what was
    downloaded earlier counts as the hub's all the same.
    """
    path = Path(name)
    if path.is_dir():
        return
    parent, is_hub_id = path.parent, _HUB_ID.fullmatch(name) is not None
    if is_hub_id and not name.startswith(".") and (
        parent == Path() or not parent.is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    ):  # fmt: skip
        return
    beside = sorted(one.name for one in parent.iterdir() if one.is_dir()) if parent.is_dir() else []
    near = get_close_matches(path.name, beside, n=1)
    advice = f"did you mean {parent / near[0]}?" if near else "check the path"
    hub = f" To take it from the hub, download it first: hf download {name}" if is_hub_id else ""
    raise ConfigError(f"{name}: there is no such folder; {advice}{hub}")


class _Base(NamedTuple):
    """The model that an adapter is for: a folder or hub id, and the hub's revision if it is known."""

    name: str
    revision: str | None = None


def _base_of(folder: str) -> _Base | None:
    """The base model of the adapter in `folder`; None if the folder holds no adapter.

    Adapters of earlier versions may name a folder as it was typed where they were trained: it is looked for from the working
    directory, then from the folders around the adapter.

    Raises ConfigError: a file that says nothing of a base model.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    settings = json.loads(file.read_text(encoding="utf-8"))
    name = settings.get("base_model_name_or_path")
    if not name:
        raise ConfigError(
            f"{file}: base_model_name_or_path is missing; write the folder or hub id of the adapter's base model"
        )
    starts = [Path(), *Path(folder).absolute().parents]
    found = next((str(start / name) for start in starts if (start / name).is_dir()), name)
    return _Base(found, None if Path(found).is_dir() else settings.get("revision"))


def _load_base(base: _Base, dtype: torch.dtype | Literal["auto"] = "auto") -> PreTrainedModel:
    if Path(base.name).is_dir():
        return load_model(base.name, dtype=dtype)  # it may be an adapter's folder itself
    return _load_whole(base.name, dtype, {"revision": base.revision})


def _load_whole(folder: str, dtype: torch.dtype | Literal["auto"], settings: Mapping[str, Any]) -> PreTrainedModel:
    if has_shards(folder):
        raise UsageError(
            f"{folder}: holds a model in shards, each written by a process of its own; put them together first: "
            f"ral export {folder} --output FOLDER"
        )
    read_whole()
    loader: Any = AutoModelForImageTextToText if _has_vision(folder, settings.get("revision")) else AutoModelForCausalLM
    with refused_by("transformers", folder):
        model = loader.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **settings)
    _allocate_unread(model)
    return model  # type: ignore[no-any-return]


def _allocate_unread(model: nn.Module) -> None:
    """Give weights that another process reads an address each, as accelerate tells an optimiser's weights apart by theirs.

    Nothing is written there, so the operating system provides no memory.
    """
    for parameter in [p for p in model.parameters() if p.is_meta]:
        own = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
        torch.utils.swap_tensors(parameter, own)


@contextmanager
def main_process_reads(args: TrainingArguments) -> Iterator[None]:
    """Inside, only the main process of each machine reads weights, if FSDP2 is to send them on (`cpu_ram_efficient_loading`)."""
    sharding = args.fsdp_config if args.fsdp and isinstance(args.fsdp_config, dict) else {}
    if str(sharding.get("cpu_ram_efficient_loading", "false")).lower() != "true":
        yield
        return
    enable_fsdp_ram_efficient_loading()
    try:
        yield
    finally:
        disable_fsdp_ram_efficient_loading()


def _config(folder: str, revision: str | None = None) -> Any:
    if (base := _base_of(folder)) is not None:
        return _config(*base)
    _refuse_missing(folder)
    try:
        with refused_by("transformers", folder):
            return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except ConfigError as error:
        if "custom code" not in str(error):
            raise
        raise ConfigError(
            f"{folder}: the model comes with code of its own, which is never run; use a model type that transformers knows"
        ) from error


def _has_vision(folder: str, revision: str | None) -> bool:
    return hasattr(_config(folder, revision), "vision_config")


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
            "quantization needs the package bitsandbytes, which is not installed: pip install -e '.[qlora]'."
        )
