"""Adapters as a server is sent them."""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from ral.rollouts.vllm import merged_state
from tests.rollouts.vllm.served import untied


def test_an_adapter_is_sent_merged_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    base, _ = untied()
    names = set(base.state_dict())
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(base, lora)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sent = merged_state(model, Accelerator(cpu=True))
    assert set(sent) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    for name, value in sent.items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)
    moved = [name for name in names if not torch.equal(sent[name], untied()[0].state_dict()[name])]
    assert len(moved) == 7  # of two layers of the decoder and two of the vision tower, and the output embedding
