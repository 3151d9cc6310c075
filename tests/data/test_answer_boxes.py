"""Boxes as answers, in the coordinates that a model is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    Gemma4Processor,
    InternVLProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from ral.data.answer_boxes import (
    _written,
    as_asked,
    box_hint,
    box_space,
    in_pixels,
    require_stated_spaces,
    stated_space,
)
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.data.stated_boxes import StatedBox, stated_boxes
from ral.errors import ConfigError, DataError
from ral.families import BoxSpace, family_of_processor, known_types, registry
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
    with pytest.raises(DataError, match=r"f:6: box_space is 'percent'; expected one of image, resized, thousandths, "):
        box_space(pointed(extra={"box_space": "percent"}), processor)


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
    scaled = _written(f"[{x0}, {y0}, {x1}, {y1}]", (across, down), "resized")
    a, b, c, d = (float(part) for part in scaled.strip("[]").split(","))
    assert a < c
    assert b < d
    exact = (x0 * across, y0 * down, x1 * across, y1 * down)
    assert max(abs(u - v) for u, v in zip((a, b, c, d), exact, strict=True)) <= 0.5


def test_a_stated_box_is_read_back_into_pixels_of_the_original(processor: Any, thousandths: Any) -> None:
    """The other way of `as_asked`, without its rounding; what lies outside is cut off."""
    record = pointed(problem_type="free-form")
    spaces: list[tuple[Any, BoxSpace, tuple[Any, ...], tuple[Any, ...]]] = [
        (processor, "resized", (21, 56, 63, 140), (-5, 56, 1000, 140)),
        (thousandths, "thousandths", (250, 200, 750, 500), (-1, 200, 2000, 500)),
        (processor, "thousandths_yx", (200, 250, 500, 750), (200, -1, 500, 2000)),
        (processor, "image", (300, 600, 900, 1500), (-1, 600, 1201, 1500)),
    ]
    for kind, space, asked, outside in spaces:
        inputs = encode_prompt(kind, record, think=False, max_pixels=28 * 28 * 40)
        assert in_pixels(StatedBox(asked, 0), space, record, kind, inputs) == Box(300, 600, 900, 1500)
        assert in_pixels(StatedBox(outside, 0), space, record, kind, inputs) == Box(0, 600, 1200, 1500)
        assert in_pixels(StatedBox((3000, 3000, 4000, 3010), 0), space, record, kind, inputs) is None
    shares = StatedBox((0.25, 0.2, 0.75, 0.5), 0)
    assert in_pixels(shares, "unit", record, processor, {}) == Box(300, 600, 900, 1500)


@pytest.mark.parametrize("corners", [(0.1, 0.1, 0.9, 0.9), (0, 0, 1, 1), (0.0, 0.5, 0.02, 1.0)])
def test_shares_are_no_pixels_and_no_thousandths(processor: Any, corners: tuple[Any, ...]) -> None:
    record = pointed(problem_type="free-form")
    inputs = encode_prompt(processor, record, think=False, max_pixels=28 * 28 * 40)
    spaces: tuple[BoxSpace, ...] = ("image", "resized", "thousandths", "thousandths_yx", "loc")
    for space in spaces:
        assert in_pixels(StatedBox(corners, 0), space, record, processor, inputs) is None
    assert in_pixels(StatedBox(corners, 0), "unit", record, processor, inputs) is not None
    for beyond in ((0.1, 0.1, 0.9, 1.5), (21, 56, 63, 140), (-0.1, 0.1, 0.9, 0.9)):
        assert in_pixels(StatedBox(beyond, 0), "unit", record, processor, inputs) is None


def test_a_box_too_thin_to_be_shown_is_none(processor: Any) -> None:
    record = pointed()
    for thin in ((0, 0, 1e-200, 5), (0, 0, 5, 1e-4)):
        assert in_pixels(StatedBox(thin, 0), "image", record, processor, {}) is None
    assert in_pixels(StatedBox((0, 0, 0.01, 5), 0), "image", record, processor, {}) == Box(0, 0, 0.01, 5)


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ('{"x1": 250, "y1": 200, "x2": 750, "y2": 500}', "thousandths_yx"),
        ('{"box_2d": [200, 250, 500, 750]}', "thousandths"),
        ("[200, 250, 500, 750]", "thousandths_yx"),
        ("[250, 200, 750, 500]", "thousandths"),
        ("<box>[[250, 200, 750, 500]]</box>", "thousandths"),
        ("<loc0205><loc0256><loc0512><loc0768>", "loc"),
        ("<loc0205><loc0256><loc0512><loc0768>", "thousandths"),
    ],
)
def test_a_form_that_says_its_axes_is_read_by_them(processor: Any, text: str, space: BoxSpace) -> None:
    [stated] = stated_boxes(text)
    box = in_pixels(stated, space, pointed(), processor, {})
    assert box is not None
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((300, 600, 900, 1500), abs=1)


#: By the makers' model cards and papers; of all other families none is known.
PUBLISHED = {
    "qwen2_vl": "thousandths", "qwen2_5_vl": "resized", "qwen3_vl": "thousandths", "qwen3_vl_moe": "thousandths",
    "qwen3_5": "thousandths", "qwen3_5_moe": "thousandths", "glm46v": "thousandths", "glm4v": "thousandths",
    "glm4v_moe": "thousandths", "internvl": "thousandths", "gemma4": "thousandths_yx", "paligemma": "loc",
}  # fmt: skip


def test_every_family_writes_boxes_as_published_or_says_nothing() -> None:
    assert {kind: registry._BY_TYPE[kind].box_space for kind in known_types()} == dict.fromkeys(
        known_types()
    ) | PUBLISHED


def of(kind: type) -> Any:
    """A processor of this class, of which its class alone is asked for."""
    return object.__new__(kind)


def test_processors_lead_to_the_space_of_their_family() -> None:
    kinds = {
        InternVLProcessor: "thousandths",
        Gemma4Processor: "thousandths_yx",
        PaliGemmaProcessor: "loc",
        LlavaProcessor: None,
    }
    for kind, space in kinds.items():
        assert family_of_processor(of(kind)).box_space == space


@pytest.mark.parametrize(
    ("kind", "hint", "solution"),
    [
        (Gemma4Processor, "[y0, x0, y1, x1] in thousandths of the image's height and width", "[200, 250, 500, 750]"),
        (InternVLProcessor, "[x0, y0, x1, y1] in thousandths of the image's width and height", "[250, 200, 750, 500]"),
        (PaliGemmaProcessor, "four location tokens of y0, x0, y1 and x1", "<loc0205><loc0256><loc0512><loc0768>"),
        (LlavaProcessor, "pixels of the image, which is 1200 wide and 3000 high", "[300, 600, 900, 1500]"),
    ],
)
def test_the_answer_is_asked_for_and_scored_as_the_family_writes_it(kind: type, hint: str, solution: str) -> None:
    record = pointed()
    assert hint in box_hint(record, of(kind))
    asked = as_asked(record, of(kind), {})
    assert asked.solution == solution
    assert judge(f"<think>there</think><answer>{solution}</answer>", asked.solution, "box").score == 1


@given(
    st.lists(st.integers(0, 3000), min_size=2, max_size=2, unique=True),
    st.lists(st.integers(0, 1200), min_size=2, max_size=2, unique=True),
    st.sampled_from(["unit", "loc", "thousandths_yx"]),
)
def test_a_solution_is_read_back_from_every_space(xs: list[int], ys: list[int], space: BoxSpace) -> None:
    (x0, x1), (y0, y1) = sorted(xs), sorted(ys)
    record = pointed(f"[{x0}, {y0}, {x1}, {y1}]", (3000, 1200), extra={"box_space": space})
    [stated] = stated_boxes(as_asked(record, object(), {}).solution)
    box = in_pixels(stated, space, record, object(), {})
    if space != "unit" and max(stated.corners) <= 1:  # so small that its thousandths look like shares
        assert box is None or space == "loc"
        return
    assert box is not None
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((x0, y0, x1, y1), abs=2 * 3000 / 1000)


def test_where_no_family_says_it_stated_boxes_are_refused_at_the_start() -> None:
    records = [Record("t", "no picture", "a"), pointed(problem_type="free-form")]
    with pytest.raises(
        ConfigError, match=r"f:6: .*set evidence_box_space \(or a column box_space.*\) to one of image, "
    ):
        require_stated_spaces(records, of(LlavaProcessor), None)
    require_stated_spaces(records[:1], of(LlavaProcessor), None)
    require_stated_spaces(records, of(LlavaProcessor), "unit")
    require_stated_spaces(records, of(InternVLProcessor), None)
    named = pointed(problem_type="free-form", extra={"box_space": "image"})
    assert stated_space(named, of(LlavaProcessor), "unit") == "image"
    assert stated_space(pointed(problem_type="free-form"), of(InternVLProcessor), "unit") == "unit"
    # A prompt that asks for a box says in what.
    assert stated_space(pointed(), of(LlavaProcessor), "unit") == "image"


def test_resized_needs_a_processor_that_says_the_size() -> None:
    llava = of(LlavaProcessor)
    record = pointed(extra={"box_space": "resized"})
    for inputs in ({"pixel_values": torch.zeros(1)}, {}):
        with pytest.raises(
            DataError, match=r"f:6: .*box_space: resized.*LlavaProcessor.*expected image_grid_thw.*thousandths"
        ):
            as_asked(record, llava, inputs)
        with pytest.raises(DataError, match="does not say which size that is"):
            in_pixels(StatedBox((1, 2, 3, 4), 0), "resized", record, llava, inputs)
