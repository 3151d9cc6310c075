from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ral.data.media import load_video
from ral.data.prompt import _metadata, build_messages, encode_prompt
from ral.data.record import Record
from ral.errors import DataError
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from tests.data.test_video import write as write_frames

IMAGES = (Image.new("RGB", (100, 50), "red"), Image.new("RGB", (56, 56), "blue"))


def parts(record: Record, **arguments: Any) -> list[Any]:
    [turn] = build_messages(record, **{"think": True, "template": "plain", **arguments})
    assert turn["role"] == "user"
    return [part.get("text") or part.get("image") or part.get("video") for part in turn["content"]]


def test_media_stand_at_their_marks() -> None:
    record = Record("1", "Is <image> like <image>?", "yes", images=IMAGES)
    assert parts(record) == ["Is ", IMAGES[0], " like ", IMAGES[1], "? think"]


def test_media_without_marks_come_first_in_order() -> None:
    record = Record("1", "Compare with <image>.", "yes", images=IMAGES, videos=(Path("v.mp4"),))
    assert parts(record) == [IMAGES[0], Path("v.mp4"), "Compare with ", IMAGES[1], ". think"]


def test_more_marks_than_media_are_refused() -> None:
    with pytest.raises(DataError, match="f:7: 1 <image> marks but 0"):
        build_messages(Record("1", "<image>?", "yes", origin="f:7"), think=True)


@pytest.mark.parametrize(
    ("think", "kind", "said"),
    [
        (True, "multiple choice", ["<think>", "</answer>", "option letter"]),
        (True, "numerical", ["<think>", "number"]),
        (False, "OCR", ["without tags", "transcribed"]),
        (False, "box", ["[x0, y0, x1, y1]"]),
    ],
)
def test_the_paper_template_asks_for_the_form_and_the_kind_of_answer(think: bool, kind: Any, said: list[str]) -> None:
    record = Record("1", "Which?", "A", kind, options=("A. x", "B. y"))
    [text] = parts(record, think=think, template="paper")
    assert text.startswith("Which?\nOptions:\nA. x\nB. y\n\n")
    assert all(phrase in text for phrase in said)
    assert ("<answer>" in text) == think


def test_images_and_videos_become_the_processor_s_tensors(processor: Any, media: Path) -> None:
    record = Record(
        "1", "See <image> and <video>?", "A", images=(media / "b.jpg",), videos=(media / "clip.mp4",), origin="f:1"
    )
    inputs = encode_prompt(processor, record, think=True, min_pixels=28 * 28, max_pixels=28 * 28 * 16, num_frames=5)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 8]]
    assert inputs["video_grid_thw"].tolist() == [[3, 4, 6]]  # five frames, the last one twice
    assert inputs["second_per_grid_ts"].tolist() == [2.0]  # one frame a second, two to a grid row
    ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
    assert ids.shape == kinds.shape == inputs["attention_mask"].shape
    assert (kinds == 1).sum() == 4 * 8 / 4
    assert (kinds == 2).sum() == 3 * 4 * 6 / 4
    assert inputs["pixel_values"].shape[0] == 4 * 8
    assert inputs["pixel_values_videos"].shape[0] == 3 * 4 * 6
    assert processor.tokenizer.decode(ids[0]).endswith("<|im_start|>assistant\n")


def test_pixel_bounds_change_the_number_of_visual_tokens(processor: Any) -> None:
    record = Record("1", "?", "A", images=(Image.new("RGB", (400, 400)),))
    counts = [
        int((encode_prompt(processor, record, think=False, max_pixels=784 * n)["mm_token_type_ids"] == 1).sum())
        for n in (4, 16, 64)
    ]
    assert counts == [4, 16, 64]


def test_the_frames_of_a_video_share_its_pixels(processor: Any, media: Path) -> None:
    """More frames become smaller ones; the tighter of the two bounds holds."""
    record = Record("1", "?", "A", videos=(media / "clip.mp4",), origin="f:1")

    def grid(**settings: int) -> tuple[int, int]:
        frames, height, width = encode_prompt(processor, record, think=True, min_pixels=784, **settings)[
            "video_grid_thw"
        ][0].tolist()
        return frames, height * width * 14 * 14

    for frames in (2, 4):
        count, pixels = grid(num_frames=frames, video_pixels=4 * 784 * 4)
        assert count == frames / 2
        assert pixels <= 4 * 784 * 4 / frames
    assert grid(num_frames=2, video_pixels=4 * 784 * 4, max_pixels=784 * 4)[1] <= 784 * 4
    assert grid(num_frames=2, video_pixels=784 * 4, max_pixels=784 * 8)[1] <= 784 * 2


def test_a_tokenizer_is_enough_for_text(tokenizer: Any, processor: Any) -> None:
    record = Record("1", "2 + 2?", "4")
    inputs = encode_prompt(tokenizer, record, think=False, template="plain")
    assert tokenizer.decode(inputs["input_ids"][0]) == "2 + 2? answer"
    assert set(inputs) == {"input_ids", "attention_mask"}
    with_turns = encode_prompt(processor, record, think=False, template="plain")
    assert not torch.any(with_turns["mm_token_type_ids"])
    with pytest.raises(DataError, match="reads text only"):
        encode_prompt(tokenizer, Record("1", "?", "4", images=IMAGES), think=False)


def test_control_tokens_in_the_text_are_refused(processor: Any) -> None:
    record = Record("1", "What is <|image_pad|>?", "x", origin="f:9")
    with pytest.raises(DataError, match=r"f:9: .*'<\|image_pad\|>'"):
        encode_prompt(processor, record, think=True)


def test_what_the_processor_refuses_names_the_record(processor: Any) -> None:
    record = Record("1", "?", "A", images=(Image.new("RGB", (1000, 2)),), origin="f:4")
    with pytest.raises(DataError, match="f:4: the processor refuses"):
        encode_prompt(processor, record, think=True)


def test_times_of_a_video_of_several_rates_reach_the_processor(tmp_path: Path) -> None:
    """One frame a second, then ten: counted in frames at one rate they would be seconds off."""
    starts = [*range(10), *(10 + n / 10 for n in range(40))]
    video = load_video(write_frames(tmp_path / "a.mp4", len(starts), 1000, times=starts), num_frames=6)
    metadata = _metadata(video)
    seconds = [number / metadata.fps for number in metadata.frames_indices]
    assert seconds == pytest.approx([0, 2, 5, 8, 11.1, 13.9], abs=1e-3)
    assert metadata.total_num_frames / metadata.fps == pytest.approx(video.duration, abs=1e-3)
    steady = load_video(write_frames(tmp_path / "b.mp4", 20, 10), num_frames=3)
    assert (_metadata(steady).fps, _metadata(steady).frames_indices) == (10, [0, 9, 19])


def test_a_prompt_above_the_longest_is_refused_with_its_record_and_nothing_is_cut() -> None:
    _, processor = load_start()
    record = replace(ring_records(1, seed=0)[0], origin="rings.jsonl:1")
    tokens = encode_prompt(processor, record)["input_ids"].shape[1]
    assert encode_prompt(processor, record, max_prompt_length=tokens)["input_ids"].shape[1] == tokens
    with pytest.raises(
        DataError, match=rf"rings.jsonl:1: .* {tokens} tokens, more than max_prompt_length={tokens - 1};"
    ):
        encode_prompt(processor, record, max_prompt_length=tokens - 1)
