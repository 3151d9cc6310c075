"""Adapters: loaded, merged, written out and put on each other; quantised models."""

from __future__ import annotations

import copy
import importlib.util
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
