from __future__ import annotations

import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ral.data.prompt import encode_prompt
from ral.testbed.model import CONTROL_TOKENS, TAGS, build_model, build_processor
from ral.testbed.rings import COLOURS, QUESTIONS, ring_records

PROCESSOR = build_processor()
TOKENIZER = PROCESSOR.tokenizer


@given(st.text(alphabet=string.printable))
def test_printable_text_survives_the_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.text())
def test_so_does_any_other_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "token", [*CONTROL_TOKENS, *TAGS, *COLOURS, *(f" {name}" for name in COLOURS), " 7", "row", " col"]
)
def test_words_of_the_testbed_are_single_tokens(token: str) -> None:
    assert len(TOKENIZER.encode(token)) == 1


def test_questions_of_both_tasks_cost_a_token_a_word() -> None:
    for question in QUESTIONS:
        asked = question.format("red")
        assert len(TOKENIZER.encode(asked)) == len(asked.split()) + 1  # and the question mark
    assert len(TOKENIZER.encode("does the image not contain a gray shape?")) == 9


def test_tags_survive_decoding_and_control_tokens_do_not() -> None:
    text = "<think>row 2 col 3</think><answer>purple</answer>"
    ids = TOKENIZER.encode(f"{text}<|im_end|><|endoftext|>")
    assert len(ids) == 9 + 2
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(("size", "tokens"), [(64, 64), (128, 256), (256, 1024), (512, 1024), (56, 49)])
def test_visual_tokens_of_an_image(size: int, tokens: int) -> None:
    record = ring_records(1, seed=0, image_size=size)[0]
    ids = encode_prompt(PROCESSOR, record, think=True, template="plain")["input_ids"]
    assert (ids == TOKENIZER.convert_tokens_to_ids("<|image_pad|>")).sum() == tokens


def test_prompt_reads_question_then_image_then_format() -> None:
    record = ring_records(1, seed=0)[0]
    ids = encode_prompt(PROCESSOR, record, think=True, template="plain")["input_ids"][0]
    question = record.problem.removesuffix("<image>")
    assert TOKENIZER.decode(ids) == (
        f"<|im_start|>user\n{question}<|vision_start|>{'<|image_pad|>' * 64}<|vision_end|> think<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_video_is_read_two_frames_at_a_time() -> None:
    model = build_model(PROCESSOR).eval()
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "where is it?"}]}]
    text = PROCESSOR.apply_chat_template(messages, add_generation_prompt=True)
    frames = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)
    inputs = PROCESSOR(text=[text], videos=[frames], return_tensors="pt", videos_kwargs={"do_sample_frames": False})
    assert inputs["video_grid_thw"].tolist() == [[2, 16, 16]]
    assert (inputs["input_ids"] == model.config.video_token_id).sum() == 2 * 64
    assert torch.isfinite(model(**inputs).logits).all()


def test_a_fresh_model_is_small_seeded_and_ends_its_turns() -> None:
    one, same, other = (build_model(PROCESSOR, seed=seed) for seed in (0, 0, 1))
    first, again, different = (model.model.language_model.embed_tokens.weight for model in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, different)
    assert 0.5e6 < one.num_parameters() < 1.5e6
    assert first.std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert one.generation_config.eos_token_id == TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    assert one.generation_config.pad_token_id == TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
