"""An adapter of every kind of family, merged and written as a whole model with its processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.families.processors import tokenizer
from experiments.families.zoo import TEXT, TEXTS
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ral.attention.models import make_capturable
from ral.models.adapters import put_adapter
from ral.models.loading import export, load_model, load_processor
from ral.models.lora import lora_config
from tests.families.test_geometry import encoded, made, picture

#: Tiled, cropped and of one grid.
PICTURED = ("internvl", "gemma3", "idefics3", "mistral3", "llava_onevision")
#: Experts, compressed keys, Mamba and the gated delta rule; the last two with tied embeddings.
WRITTEN = {"qwen3_moe": False, "deepseek_v3": False, "llama4_text": False, "falcon_h1": False, "gemma3_text": True, "qwen3_5_text": True}  # fmt: skip


@dataclass(frozen=True)
class Task:
    peft: dict[str, Any]


def started(kind: str) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """A tiny model, its processor, and a prompt."""
    if kind in PICTURED:
        processor, model = made(kind)
        return model, processor, encoded(processor, picture((100, 60)))
    torch.manual_seed(0)
    words = tokenizer()
    sizes = TEXT | TEXTS[kind] | {"tie_word_embeddings": WRITTEN[kind], "vocab_size": len(words)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    return model, words, {"input_ids": torch.randint(0, 50, (1, 20))}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model.eval()(**inputs).logits


@pytest.mark.parametrize("kind", [*PICTURED, *WRITTEN])
def test_what_is_exported_answers_as_the_adapter_does(kind: str, tmp_path: Path) -> None:
    model, processor, inputs = started(kind)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    before = logits(model, inputs)
    base = make_capturable(load_model(tmp_path / "base", dtype=torch.float32))
    peft = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}
    config = lora_config(Task(peft), base, freeze_vision=True)
    assert config is not None
    policy = put_adapter(base, config, seed=0)
    trained = logits(policy, inputs)
    assert (trained - before).abs().max() > 1e-3
    policy.save_pretrained(str(tmp_path / "adapter"))
    export(tmp_path / "adapter", tmp_path / "whole")
    whole = load_model(tmp_path / "whole", dtype=torch.float32)
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "whole").iterdir()}
    torch.testing.assert_close(logits(whole, inputs), trained, atol=2e-4, rtol=1e-4)
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert tied == WRITTEN.get(kind, model.config.tie_word_embeddings)
    again = load_processor(tmp_path / "whole")
    assert type(again) is type(processor)
    if kind in PICTURED:
        assert torch.equal(encoded(again, picture((100, 60)))["pixel_values"], inputs["pixel_values"])
