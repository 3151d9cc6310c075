"""The tokens of a prompt that show the evidence: of images, videos and documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ral.attention import prepare_prompt
from ral.data.boxes import box_mask
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.testbed import load_start
from ral.testbed.episodes import LEG, episode_records
from ral.testbed.model import build_text_model, build_tokenizer
from ral.testbed.needles import needle_records
from ral.testbed.rings import ring_records
from ral.training.evidence import answer_tokens, evidence_tokens

MODEL, PROCESSOR = load_start()


def test_of_an_image_they_are_the_cells_of_its_box() -> None:
    [record] = ring_records(1, seed=0)
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
    found = evidence_tokens(record, prompt, PROCESSOR)
    assert found is not None
    assert not found[~prompt.visual].any()
    cells = found[prompt.places].view(8, 8)
    assert torch.equal(cells, torch.from_numpy(box_mask((8, 8), (64, 64), record.boxes)))
    assert 0 < cells.sum() < 8


def test_boxes_of_the_second_image_are_marked_in_the_second_image() -> None:
    left, right = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    record = Record("two", "<image> <image> which?", "red", images=(left, right), boxes=(Box(0, 0, 8, 8, medium=1),))
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
    found = evidence_tokens(record, prompt, PROCESSOR)
    assert found is not None
    assert found[prompt.places].nonzero().flatten().tolist() == [64]


def test_of_a_video_they_are_in_the_patch_of_the_frame(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    [record] = episode_records(1, 0, picks=[3], cache=tmp_path)
    inputs = encode_prompt(PROCESSOR, record, think=True, template="plain", fps=1.0)
    prompt = prepare_prompt(MODEL, inputs)
    found = evidence_tokens(record, prompt, PROCESSOR, fps=1.0)
    assert found is not None
    [(t, h, w)] = prompt.grids
    patches = found[prompt.places].view(t, h * w).any(dim=1)
    assert patches.nonzero().flatten().tolist() == [record.boxes[0].frame // LEG]
    unseen = replace(record, boxes=tuple(replace(box, frame=1) for box in record.boxes))
    assert evidence_tokens(unseen, prompt, PROCESSOR, fps=1.0) is None


def test_of_a_document_they_spell_the_span() -> None:
    tokenizer = build_tokenizer()
    [record] = needle_records(1, 0)
    prompt = prepare_prompt(build_text_model(tokenizer), encode_prompt(tokenizer, record, think=True, template="plain"))
    found = evidence_tokens(record, prompt, tokenizer)
    assert found is not None
    [span] = record.evidence
    assert tokenizer.decode(prompt.input_ids[found]) == record.problem[span.start : span.stop]


def test_without_boxes_it_is_not_known() -> None:
    [record] = ring_records(1, seed=0)
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
    assert evidence_tokens(replace(record, boxes=()), prompt, PROCESSOR) is None


@pytest.mark.parametrize(
    ("think", "texts", "expected"),
    [
        (True, ["<think> row 2 col 3 </think><answer> blue </answer>", "<think> blue"], ["blue", ""]),
        (False, ["blue", "blue <answer> red </answer>"], ["blue", "red"]),
    ],
)
def test_the_answer_is_its_body_alone(think: bool, texts: list[str], expected: list[str]) -> None:
    tokenizer = PROCESSOR.tokenizer
    ids = [torch.tensor(tokenizer.encode(text)) for text in texts]
    found = answer_tokens(texts, ids, PROCESSOR, "strict", think)
    assert found.shape == (2, max(map(len, ids)))
    for row, tokens, body in zip(found, ids, expected, strict=True):
        assert tokenizer.decode(tokens[row[: len(tokens)]]).strip() == body
        assert not row[len(tokens) :].any()
