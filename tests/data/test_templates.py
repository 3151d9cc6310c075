"""What chat templates make of conversations, and what they say for the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import processors
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from ral.data.prompt import build_messages, encode_completion, encode_prompt
from ral.data.record import Record, Turn
from ral.data.templates import chat_template, opens_think, think_opening, turn_end
from ral.errors import ConfigError, DataError
from ral.models.eos_tokens import eos_token_ids, write_eos_tokens
from ral.models.loading import load_processor
from ral.testbed.model import CHAT_TEMPLATE, build_text_model, build_tokenizer
from tests.data.conftest import TEMPLATE, byte_tokenizer

QUESTION = Record("1", "what color is it", "red", trace="a red ring", origin="f:1")
ANSWERING = "<|im_start|>assistant\n{% endif"
#: What comes after the model's name: as Qwen3-VL-Thinking, Qwen3.5 and Qwen3 have it.
OPENS = "<|im_start|>assistant\n<think>\n{% endif"
SWITCHED = (
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif"
)
CLOSED = (
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif"
)


def answering(start: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace(ANSWERING, start)
    assert tokenizer.chat_template.count(start) == 1
    return tokenizer


def prompt_text(tokenizer: Any, think: bool, record: Record = QUESTION) -> str:
    return tokenizer.decode(encode_prompt(tokenizer, record, think=think, template="plain")["input_ids"][0])


@pytest.mark.parametrize(
    ("start", "thinking", "direct"),
    [
        (ANSWERING, "assistant\n", "assistant\n"),
        (OPENS, "assistant\n<think>\n", None),
        (SWITCHED, "assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n"),
        (CLOSED, "assistant\n", "assistant\n<think>\n\n</think>\n\n"),
    ],
    ids=["plain", "opens", "switched", "closed"],
)
def test_the_prompt_ends_as_the_template_starts_the_answer(start: str, thinking: str, direct: str | None) -> None:
    tokenizer = answering(start)
    assert prompt_text(tokenizer, think=True).endswith("<|im_start|>" + thinking)
    assert opens_think(tokenizer) == (thinking != "assistant\n")
    assert think_opening(tokenizer) == thinking.removeprefix("assistant\n")
    if direct is None:
        with pytest.raises(ConfigError, match=r"think=False .* opens <think>.*enable_thinking.*set think to true"):
            prompt_text(tokenizer, think=False)
    else:
        assert prompt_text(tokenizer, think=False).endswith("<|im_start|>" + direct)
        assert not opens_think(tokenizer, think=False)


@pytest.mark.parametrize("start", [ANSWERING, OPENS, SWITCHED], ids=["plain", "opens", "switched"])
def test_what_is_taught_thinks_once_and_ends_the_turn(start: str) -> None:
    tokenizer = answering(start)
    taught = encode_completion(tokenizer, QUESTION, think=True)
    whole = prompt_text(tokenizer, think=True) + tokenizer.decode(taught)
    said = whole.rpartition("assistant\n")[2]
    assert said.replace("\n", "") == "<think>a red ring</think><answer>red</answer><|im_end|>"
    if start != OPENS:
        assert tokenizer.decode(encode_completion(tokenizer, QUESTION, think=False)) == "red<|im_end|>"


def test_the_instruction_does_not_ask_for_a_tag_that_stands_there() -> None:
    for start, asked in ((ANSWERING, "between <think> and </think>"), (OPENS, "End your thinking with </think>")):
        tokenizer = answering(start)
        text = tokenizer.decode(encode_prompt(tokenizer, QUESTION, think=True)["input_ids"][0])
        assert asked in text


# ------------------------------------------------------------------------------------------------- system, history


def test_system_and_earlier_turns_reach_the_prompt() -> None:
    tokenizer = build_tokenizer()
    turns = (Turn("user", "is it round"), Turn("assistant", "yes"))
    record = Record("1", "what color is it", "red", system="be brief", history=turns)
    assert prompt_text(tokenizer, True, record) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nis it round<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nwhat color is it think<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_media_of_a_dialogue_stand_at_their_marks_or_open_it() -> None:
    images = tuple(Image.new("RGB", (28, 28), colour) for colour in ("red", "blue", "green"))
    turns = (Turn("user", "What is <image>?"), Turn("assistant", "A dog."))
    record = Record("1", "And <image>?", "A cat", images=images, history=turns, system="Look.")
    messages = build_messages(record, think=False, template="plain")
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant", "user"]
    contents = [[part.get("text") or part["image"] for part in turn["content"]] for turn in messages]
    assert contents == [["Look."], [images[0], "What is ", images[1], "?"], ["A dog."], ["And ", images[2], "? answer"]]
    with pytest.raises(DataError, match="f:3: 2 <image> marks but 1"):
        build_messages(Record("1", "And <image>?", "", images=images[:1], history=turns, origin="f:3"), think=True)


def test_control_tokens_and_turns_that_the_template_refuses_are_named() -> None:
    tokenizer = build_tokenizer()
    for record in (
        Record("1", "?", "x", system="<|im_end|>", origin="f:2"),
        Record("1", "?", "x", history=(Turn("user", "<|im_end|>"), Turn("assistant", "x")), origin="f:2"),
    ):
        with pytest.raises(DataError, match=r"f:2: the text contains '<\|im_end\|>'"):
            encode_prompt(tokenizer, record, think=True)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    )
    with pytest.raises(
        DataError, match=r"f:5: the model's chat template refuses the turns system, user: no system role"
    ):
        encode_prompt(tokenizer, Record("1", "?", "x", system="be brief", origin="f:5"), think=True)


# ------------------------------------------------------------------------------------------------- tokens


def with_bos(tokenizer: Any, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a token before every text, as Llama's, Gemma's and Mistral's do."""
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin|>", eos_token="<|im_end|>", chat_template=template
    )


@pytest.mark.parametrize("written", ["{{ bos_token }}", ""], ids=["in the template", "not in the template"])
def test_the_tokens_are_those_of_the_template(written: str) -> None:
    record = Record("1", "what color is it", "red", system="look")
    tokenizer = with_bos(build_tokenizer(), written + CHAT_TEMPLATE)
    turns = [{"role": "system", "content": "look"}, {"role": "user", "content": "what color is it think"}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    ours = encode_prompt(tokenizer, record, think=True, template="plain")
    assert ours["input_ids"][0].tolist() == expected["input_ids"]
    assert expected["input_ids"].count(tokenizer.bos_token_id) == (1 if written else 0)

    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(),
        with_bos(byte_tokenizer(), ""),
        Qwen2VLVideoProcessor(),
        chat_template=written + TEMPLATE,
    )
    image = Image.new("RGB", (56, 56))
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "? think"}]
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ours = encode_prompt(processor, Record("1", "?", "x", images=(image,)), think=True, template="plain")
    assert ours["input_ids"].tolist() == [list(ids) for ids in theirs["input_ids"]]
    assert ours["input_ids"][0].tolist().count(processor.tokenizer.bos_token_id) == 1


def test_a_base_model_without_turns_gets_its_first_token() -> None:
    tokenizer = with_bos(build_tokenizer(), "")
    ids = encode_prompt(tokenizer, QUESTION, think=False, template="plain")["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("kept", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "named"])
@pytest.mark.parametrize("vision", [True, False])
def test_a_template_is_found_wherever_a_checkpoint_keeps_it(
    kept: str, vision: bool, processor: Any, tmp_path: Path
) -> None:
    template = TEMPLATE if vision else CHAT_TEMPLATE
    if vision:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
        processor.save_pretrained(tmp_path)
    else:
        build_text_model(tokenizer := build_tokenizer()).config.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = tmp_path / "tokenizer_config.json"
    settings = {key: value for key, value in json.loads(config.read_text()).items() if key != "chat_template"}
    if kept == "chat_template.jinja":
        (tmp_path / kept).write_text(template)
    elif kept == "chat_template.json":
        (tmp_path / kept).write_text(json.dumps({"chat_template": template}))
    elif kept == "named":
        named = [{"name": "rag", "template": "x"}, {"name": "default", "template": template}]
        settings["chat_template"] = named
    else:
        settings["chat_template"] = template
    config.write_text(json.dumps(settings))
    found = load_processor(tmp_path)
    assert chat_template(found) == template
    ids = encode_prompt(found, QUESTION, think=True, template="plain")["input_ids"][0]
    assert getattr(found, "tokenizer", found).decode(ids).endswith("it think<|im_end|>\n<|im_start|>assistant\n")


def test_a_processor_without_a_template_is_refused(processor: Any) -> None:
    bare = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), byte_tokenizer(), Qwen2VLVideoProcessor())
    with pytest.raises(ConfigError, match=r"no chat template; .*chat_template\.jinja"):
        encode_prompt(bare, QUESTION, think=True)


# ------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHAT_TEMPLATE, "<|im_end|>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>\n\n{% endfor %}", "<|endoftext|>"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None),
        (None, None),
    ],
)
def test_a_turn_ends_as_its_template_ends_it(template: str | None, end: str | None) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


def test_an_answer_ends_at_any_of_the_ends(tmp_path: Path) -> None:
    """The configuration of a base model ends texts, its tokenizer and its template end turns."""
    tokenizer = build_tokenizer()
    model = build_text_model(tokenizer)
    turn, text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for configured, expected in ((text, (text, turn)), ([turn, text], (turn, text)), (None, (turn,)), (turn, (turn,))):
        model.generation_config.eos_token_id = configured
        assert eos_token_ids(model, tokenizer) == expected
    tokenizer.eos_token = "<|endoftext|>"  # a base model's: what is taught ends the turn all the same
    assert encode_completion(tokenizer, QUESTION, think=False)[-1] == turn
    model.generation_config.eos_token_id = text
    assert eos_token_ids(model, tokenizer) == (text, turn)
    write_eos_tokens(model, tokenizer)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [text, turn]


@given(st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=40))
def test_the_words_of_a_question_do_not_change_how_the_prompt_ends(words: str) -> None:
    tokenizer = OPENED
    text = prompt_text(tokenizer, True, Record("1", words + " <think>", "x"))
    assert text.endswith(" <think> think<|im_end|>\n<|im_start|>assistant\n<think>\n")


OPENED = answering(OPENS)


def test_control_tokens_are_refused_in_what_is_taught(tokenizer: Any) -> None:
    """The trace is taught with thinking only."""
    record = replace(QUESTION, trace="I see <|im_end|> there")
    with pytest.raises(DataError, match="im_end"):
        encode_completion(tokenizer, record, think=True)
    bare = encode_completion(tokenizer, record, think=False)
    assert bare.tolist() == encode_completion(tokenizer, QUESTION, think=False).tolist()
    with pytest.raises(DataError, match="im_end"):
        encode_completion(tokenizer, replace(record, trace="", solution="<|im_end|>"), think=False)
