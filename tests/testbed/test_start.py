"""The shipped checkpoint: that it loads offline, is small, and starts where reinforcement can work."""

from __future__ import annotations

import pytest
import torch
from experiments.testbed.measure import complete, looking, score
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from ral.testbed import load_start, start_checkpoint
from ral.testbed.model import build_processor
from ral.testbed.rings import ring_records

RECORDS = ring_records(64, seed=2_000)


@pytest.fixture(scope="module")
def start() -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    return load_start()


def test_it_loads_as_the_real_classes_and_stays_small(start: tuple) -> None:
    model, processor = start
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    assert isinstance(processor, Qwen2_5_VLProcessor)
    assert model.dtype == torch.float32
    assert sum(file.stat().st_size for file in start_checkpoint().rglob("*")) < 6e6
    control = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert [model.generation_config.eos_token_id, model.generation_config.pad_token_id] == control


def test_its_tokenizer_is_the_one_the_code_builds(start: tuple) -> None:
    assert start[1].tokenizer.get_vocab() == build_processor().tokenizer.get_vocab()
    assert start[1].chat_template == build_processor().chat_template


def test_greedy_accuracy_leaves_room_in_both_directions(start: tuple) -> None:
    found = score(complete(*start, RECORDS, think=True), RECORDS, think=True)
    assert found["format"] >= 0.95
    assert 0.4 <= found["accuracy"] <= 0.65


def test_most_sampled_groups_hold_right_and_wrong_answers(start: tuple) -> None:
    torch.manual_seed(0)
    found = score(complete(*start, RECORDS, think=True, samples=8), RECORDS, think=True)
    assert found["format"] >= 0.95
    assert 0.35 <= found["accuracy"] <= 0.65
    assert found["mixed"] >= 0.7


def test_the_last_layer_looks_at_the_target_when_it_answers(start: tuple) -> None:
    model = AutoModelForImageTextToText.from_pretrained(start_checkpoint(), attn_implementation="eager").eval()
    answer = looking(model, start[1], RECORDS)[-1]["answer"]
    uniform = 4 / 64
    assert answer["mass"] > 2 * uniform
    assert answer["pointing"] >= 0.3
