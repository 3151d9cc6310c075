"""Adapters as a server is sent them."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ral.errors import ConfigError
from ral.rollouts.vllm.merging import merged_weights, refuse_unmergeable
from ral.testbed import load_start


def test_an_adapter_is_sent_merged_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    base, _ = load_start()
    names = set(base.state_dict())
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(base, lora)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sent = dict(merged_weights(model))
    assert set(sent) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    for name, value in sent.items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)
    moved = [name for name in names if not torch.equal(sent[name], load_start()[0].state_dict()[name])]
    assert len(moved) == 6  # of two layers of the decoder and two of the vision tower


def test_trained_tokens_are_not_sent() -> None:
    lora = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3])
    with pytest.raises(ConfigError, match=r"trainable_token_indices.*rollout_engine=transformers"):
        refuse_unmergeable(get_peft_model(load_start()[0], lora))
