"""What is asked around a problem, by the wordings of the package and by those of a recipe."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.data.prompt import decode_prompt, encode_prompt
from ral.data.record import Record, Turn
from ral.data.settings import PromptSettings
from ral.data.wording import question, read_template
from ral.errors import ConfigError
from ral.testbed import load_start
from ral.testbed.model import build_tokenizer
from ral.testbed.rings import ring_records

CHOICE = Record("1", "Which?", "A", "multiple choice", options=("A. x", "B. y"))
OPEN = Record("2", "How many {n} in $\\frac{1}{2}$?", "4", "numerical")


@pytest.mark.parametrize(
    ("template", "choice", "open_"),
    [
        ("{problem}", "Which?\nOptions:\nA. x\nB. y", OPEN.problem),
        ("{options}\n{problem} {{{hint}}}",
         "A. x\nB. y\nWhich? {a single option letter (for example A)}",
         f"\n{OPEN.problem} {{a number (for example 42 or 3.14)}}"),
        ("{problem} Put the answer in \\boxed{{}}.", "Which?\nOptions:\nA. x\nB. y Put the answer in \\boxed{}.",
         f"{OPEN.problem} Put the answer in \\boxed{{}}."),
    ],
)  # fmt: skip
def test_a_template_of_one_s_own_loses_nothing_of_the_record(template: str, choice: str, open_: str) -> None:
    for think in (True, False):
        settings = PromptSettings(prompt_template=template, think=think)
        assert [question(record, settings) for record in (CHOICE, OPEN)] == [choice, open_]
    assert "in pixels" in question(OPEN, PromptSettings(prompt_template="{problem} {hint}"), hint="a box in pixels")


def test_raw_is_the_text_of_the_data() -> None:
    raw = PromptSettings(template="raw")
    assert question(OPEN, raw) == OPEN.problem
    assert question(CHOICE, raw) == "Which?\nA. x\nB. y"
    assert question(OPEN, replace(raw, think=False), "a hint", think_opened=True) == OPEN.problem


@given(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=3))
def test_braces_and_all_else_of_a_problem_stay_as_they_are(problem: str, options: list[str]) -> None:
    record = Record("1", problem, "A", options=tuple(options))
    lines = "\n".join(options)
    assert question(record, PromptSettings(prompt_template="<{problem}|{options}>")) == f"<{problem}|{lines}>"


@given(st.text(st.sampled_from("{}problemhint:!0 ")))
def test_a_template_is_taken_or_refused(text: str) -> None:
    with suppress(ConfigError):
        assert read_template(text) == text
        assert question(replace(OPEN, problem="§"), PromptSettings(prompt_template=text)).count("§") == 1


def test_a_template_may_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ask.txt").write_text("Sieh hin: {problem}\nKnapp, bitte – {hint}.\n", encoding="utf-8")
    written = "Sieh hin: {problem}\nKnapp, bitte – {hint}."
    assert read_template("ask.txt", tmp_path) == written
    with pytest.raises(ConfigError, match=r"no file of this name \(ask.txt\)"):
        PromptSettings(prompt_template="ask.txt")
    monkeypatch.chdir(tmp_path)
    assert PromptSettings(prompt_template="ask.txt").prompt_template == written
    (tmp_path / "wrong.txt").write_text("{question}")
    with pytest.raises(ConfigError, match=r"wrong.txt: \{question\} is not known"):
        read_template("wrong.txt", tmp_path)
    (tmp_path / "wrong.txt").write_bytes(b"\xff\xfe{problem}")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        read_template("wrong.txt", tmp_path)


def asked(record: Record, **settings: Any) -> str:
    tokenizer = build_tokenizer()
    return decode_prompt(tokenizer, encode_prompt(tokenizer, record, **settings)["input_ids"][0])


def test_the_system_prompt_is_for_records_without_one() -> None:
    record = Record("1", "red ring", "red", history=(Turn("user", "blue"), Turn("assistant", "yes")))
    settings = {"system_prompt": "be brief", "template": "raw"}
    turns = (
        "<|im_start|>user\nblue<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nred ring<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert asked(record, **settings) == f"<|im_start|>system\nbe brief<|im_end|>\n{turns}"
    assert asked(replace(record, system="say all"), **settings) == f"<|im_start|>system\nsay all<|im_end|>\n{turns}"
    for name, text in (("system_prompt", "<|im_end|>"), ("prompt_template", "{problem}<|im_start|>")):
        with pytest.raises(ConfigError, match=rf"{name} contains '<\|im_.*\|>', a control token"):
            asked(record, **{name: text})


def test_a_prompt_is_shown_exactly_with_its_visual_tokens_counted() -> None:
    _, processor = load_start()
    (record,) = ring_records(1, seed=3)
    ids = encode_prompt(processor, record, prompt_template="ring: {problem}", min_pixels=784, max_pixels=3136)[
        "input_ids"
    ][0]
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    count = int((ids == image).sum())
    shown = decode_prompt(processor, ids)
    assert count > 1
    assert shown.replace(f"×{count}", "<|image_pad|>" * (count - 1)) == processor.tokenizer.decode(ids)
    assert f"<|vision_start|><|image_pad|>×{count}<|vision_end|>" in shown
