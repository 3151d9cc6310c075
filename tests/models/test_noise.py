"""Every rate of noise is found, wherever a model keeps it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

from ral.models.noise import switch_off_noise
from tests.tiny import tiny_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
IDS = torch.arange(12)[None]


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "attention": LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32, attention_dropout=0.4)),
        "layers": OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, dropout=0.3, layerdrop=0.3)),
        "routing": MixtralForCausalLM(
            MixtralConfig(
                **SIZES, intermediate_size=32, num_key_value_heads=2, router_jitter_noise=0.3, num_local_experts=4
            )
        ),
    }


@pytest.mark.parametrize("kind", ["attention", "layers", "routing"])
def test_a_model_in_training_mode_is_the_same_every_time(kind: str) -> None:
    model = models()[kind].train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits), "there is noise to switch off"
    switch_off_noise(model)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    assert torch.equal(model(IDS).logits, model.eval()(IDS).logits)


def test_what_is_no_rate_stays() -> None:
    model = tiny_model("qwen2_5_vl", attention_dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = model.config.to_dict()
    switch_off_noise(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    text = settings["text_config"] | {"attention_dropout": 0.0}
    assert model.config.to_dict()["text_config"] == text
