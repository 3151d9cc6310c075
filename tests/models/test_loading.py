"""Adapters: loaded, merged, written out and put on each other; quantised models."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from ral.data.prompt import encode_prompt
from ral.models.loading import export, load_model, load_processor, prompt_budget
from ral.testbed import load_start, start_checkpoint
from ral.testbed.rings import ring_records

MODEL, PROCESSOR = load_start()
TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj"]
PROMPT = encode_prompt(PROCESSOR, ring_records(1, seed=0)[0], think=True, template="plain")


def adapted(base: PreTrainedModel, folder: Path, *, dora: bool = False, seed: int = 0) -> PeftModel:
    """`base` with an adapter of which no part is as it starts, saved to `folder` with the processor."""
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS, use_dora=dora)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**PROMPT).logits


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_exported_adapter_is_a_whole_model_with_the_adapters_logits(tmp_path: Path, dora: bool) -> None:
    expected = logits(adapted(copy.deepcopy(MODEL), tmp_path / "run/final", dora=dora))
    assert (expected - logits(MODEL)).abs().max() > 0.1, "the adapter does something"
    export(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "whole/adapter_config.json").exists()
    exported = load_model(tmp_path / "whole")
    assert not any("lora" in name for name in exported.state_dict())
    torch.testing.assert_close(logits(exported), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(load_model(tmp_path / "run")), logits(exported), atol=0, rtol=0)
    assert load_processor(tmp_path / "whole").tokenizer.get_vocab() == PROCESSOR.tokenizer.get_vocab()


def test_an_adapter_on_a_run_that_trained_an_adapter_is_loaded_on_top_of_it(tmp_path: Path) -> None:
    adapted(copy.deepcopy(MODEL), tmp_path / "first/final")
    expected = logits(adapted(load_model(tmp_path / "first"), tmp_path / "second", seed=1))
    torch.testing.assert_close(logits(load_model(tmp_path / "second")), expected, atol=1e-4, rtol=0)
    assert prompt_budget(tmp_path / "second") == prompt_budget(start_checkpoint())


def base_and_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """`folder/base`, and `folder/runs/adapter` on it, made with a relative path from inside `folder`; the adapter's logits."""
    monkeypatch.chdir(folder)
    MODEL.save_pretrained("base")
    PROCESSOR.save_pretrained("base")
    return logits(adapted(load_model("base"), Path("runs/adapter")))


def test_an_adapter_finds_its_base_model_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = base_and_adapter(tmp_path, monkeypatch)
    monkeypatch.chdir("/")
    torch.testing.assert_close(logits(load_model(tmp_path / "runs/adapter")), expected, atol=1e-4, rtol=0)


def test_a_base_model_named_as_it_was_typed_is_found_around_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions of this package wrote it."""
    expected = base_and_adapter(tmp_path, monkeypatch)
    file = tmp_path / "runs/adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "base"}))
    monkeypatch.chdir("/")
    torch.testing.assert_close(logits(load_model(tmp_path / "runs/adapter")), expected, atol=1e-4, rtol=0)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"adapter_config\.json: base_model_name_or_path is missing"):
        load_model(tmp_path / "runs/adapter")


def test_an_adapter_without_processor_files_has_those_of_its_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = base_and_adapter(tmp_path, monkeypatch)
    for file in (tmp_path / "runs/adapter").iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    export("runs/adapter", Path("whole"))
    assert load_processor("whole").tokenizer.get_vocab() == PROCESSOR.tokenizer.get_vocab()
    torch.testing.assert_close(logits(load_model("whole")), expected, atol=1e-4, rtol=0)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_and_adapter(tmp_path, monkeypatch)
    (tmp_path / "runs/adapter/processor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises((ValueError, OSError)):
        export("runs/adapter", tmp_path / "whole")
    assert not list(tmp_path.glob("*whole*"))
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no adapter"):
        export(start_checkpoint(), tmp_path / "out")
    adapted(copy.deepcopy(MODEL), tmp_path / "adapter")
    with pytest.raises(ValueError, match="is not an empty folder"):
        export(tmp_path / "adapter", tmp_path)


def test_an_adapter_is_not_merged_into_quantised_weights(tmp_path: Path) -> None:
    adapted(copy.deepcopy(MODEL), tmp_path)
    with pytest.raises(ValueError, match="ral export"):
        load_model(tmp_path, {"load_in_4bit": True})


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantisation_without_its_package_is_refused() -> None:
    with pytest.raises(ValueError, match="bitsandbytes, which is not installed"):
        load_model(start_checkpoint(), {"load_in_4bit": True})


def test_a_quantised_model_holds_four_bit_weights() -> None:
    pytest.importorskip("bitsandbytes")
    model: Any = load_model(start_checkpoint(), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == torch.uint8
    assert weight.quant_state.quant_type == "nf4"
