"""Boxes as answers, in the coordinates that a model is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

from ral.data.answer_boxes import _scaled, as_asked, box_space, in_pixels
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.errors import DataError
from ral.rewards.answers import judge
from ral.rewards.functions import build_rewards, of_record, score_group
from tests.data.conftest import TEMPLATE


@pytest.fixture(scope="module")
def thousandths(processor: Any) -> Any:
    return Qwen3VLProcessor(processor.image_processor, processor.tokenizer, Qwen3VLVideoProcessor(), TEMPLATE)


def pointed(solution: str = "[300, 600, 900, 1500]", size: tuple[int, int] = (1200, 3000), **named: Any) -> Record:
    named = {"problem_type": "box"} | named
    return Record("1", "Where is the cup?", solution, images=(Image.new("RGB", size),), origin="f:6", **named)


def score(answer: list[int], record: Record) -> float:
    return judge(f"<think>there</think><answer>{answer}</answer>", record.solution, "box").score


def test_pixels_of_the_image_as_it_is_shown(processor: Any) -> None:
    record = pointed()
    inputs = encode_prompt(processor, record, think=True, max_pixels=28 * 28 * 40)
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    width, height = 14 * columns, 14 * rows
    assert (width, height) == (84, 280)
    assert "in pixels of the image as it is shown to you" in processor.tokenizer.decode(inputs["input_ids"][0])
    asked = as_asked(record, processor, inputs)
    assert asked.solution == "[21, 56, 63, 140]"
    assert score([21, 56, 63, 140], asked) == 1
    assert score([21, 56, 63, 98], asked) == pytest.approx(0.5)
    assert score([300, 600, 900, 1500], asked) == 0


def test_rewards_score_the_record_as_it_was_asked(processor: Any, thousandths: Any) -> None:
    """By hand as in training: record, prompt, `as_asked`, `score_group`. The answer that is right for one family is wrong for the other."""
    record, rewards = pointed("[1000, 400, 1600, 900]", (2000, 1000)), build_rewards(["accuracy"])
    answers = ("[168, 67, 269, 151]", "[500, 400, 800, 900]")  # of 336×168 pixels, and of 1000×1000
    texts = [f"<think>there</think><answer>{answer}</answer>" for answer in answers]
    for family, bounds, right in ((processor, {"max_pixels": 256 * 256}, 0), (thousandths, {}, 1)):
        asked = as_asked(record, family, encode_prompt(family, record, think=True, **bounds))
        assert asked.solution == answers[right]
        found = score_group(rewards, *of_record(asked, texts, [[], []])).total
        assert found[right] == 1 > 0.1 > found[1 - right]


def test_thousandths_of_its_sides(thousandths: Any) -> None:
    record = pointed()
    inputs = encode_prompt(thousandths, record, think=False)
    assert "in thousandths of the image's width and height" in thousandths.tokenizer.decode(inputs["input_ids"][0])
    asked = as_asked(record, thousandths, inputs)
    assert asked.solution == "[250, 200, 750, 500]"
    assert score([250, 200, 750, 500], asked) == 1


def test_pixels_of_the_original_are_told_its_size(tokenizer: Any, processor: Any) -> None:
    record = pointed(extra={"box_space": "image"})
    inputs = encode_prompt(processor, record, think=False)
    assert "pixels of the image, which is 1200 wide and 3000 high" in processor.tokenizer.decode(inputs["input_ids"][0])
    assert as_asked(record, processor, inputs) is record
    words = Record("1", "Where?", "[1, 2, 3, 4]", "box")
    assert as_asked(words, tokenizer, {}) is words
    assert "a box [x0, y0, x1, y1]." in tokenizer.decode(encode_prompt(tokenizer, words, think=False)["input_ids"][0])


def test_the_data_can_name_the_space(processor: Any) -> None:
    record = pointed(extra={"box_space": "thousandths"}, other_solutions=("[0, 0, 1200, 3000]",))
    asked = as_asked(record, processor, encode_prompt(processor, record, think=True))
    assert asked.solutions == ("[250, 200, 750, 500]", "[0, 0, 1000, 1000]")
    with pytest.raises(DataError, match=r"f:6: box_space is 'unit'; expected one of image, resized, thousandths"):
        box_space(pointed(extra={"box_space": "unit"}), processor)


def test_boxes_of_a_video_are_of_its_frames(processor: Any, media: Path) -> None:
    record = Record("1", "Where?", "[24, 16, 96, 64]", "box", videos=(media / "clip.mp4",), origin="f:1")
    inputs = encode_prompt(processor, record, think=True, min_pixels=28 * 28, max_pixels=28 * 28 * 4, num_frames=4)
    assert inputs["video_grid_thw"].tolist() == [[2, 2, 4]]  # 96×64 shown as 56×28
    assert as_asked(record, processor, inputs).solution == "[14, 7, 56, 28]"


def test_other_answers_stay_as_they_are(processor: Any) -> None:
    for record in (pointed("left of the door"), Record("1", "?", "[300, 600, 900, 1500]", images=pointed().images)):
        assert as_asked(record, processor, encode_prompt(processor, record, think=True)).solution == record.solution


@given(
    st.lists(st.integers(0, 5000), min_size=2, max_size=2, unique=True),
    st.lists(st.integers(0, 5000), min_size=2, max_size=2, unique=True),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
)
def test_a_scaled_box_is_never_empty(xs: list[int], ys: list[int], across: float, down: float) -> None:
    (x0, x1), (y0, y1) = sorted(xs), sorted(ys)
    scaled = _scaled(f"[{x0}, {y0}, {x1}, {y1}]", (across, down))
    a, b, c, d = (float(part) for part in scaled.strip("[]").split(","))
    assert a < c
    assert b < d
    exact = (x0 * across, y0 * down, x1 * across, y1 * down)
    assert max(abs(u - v) for u, v in zip((a, b, c, d), exact, strict=True)) <= 0.5


def test_a_stated_box_is_read_back_into_pixels_of_the_original(processor: Any, thousandths: Any) -> None:
    """The other way of `as_asked`, without its rounding; what lies outside is cut off."""
    record = pointed(problem_type="free-form")
    for kind, asked, outside in (
        (processor, (21, 56, 63, 140), (-5, 56, 1000, 140)),
        (thousandths, (250, 200, 750, 500), (-1, 200, 2000, 500)),
    ):
        inputs = encode_prompt(kind, record, think=False, max_pixels=28 * 28 * 40)
        assert in_pixels(asked, record, kind, inputs) == Box(300, 600, 900, 1500)
        assert in_pixels(outside, record, kind, inputs) == Box(0, 600, 1200, 1500)
        assert in_pixels((3000, 0, 4000, 10), record, kind, inputs) is None
    in_original = replace(record, extra={"box_space": "image"})
    assert in_pixels((1, 2, 3, 4), in_original, processor, {}) == Box(1, 2, 3, 4)
