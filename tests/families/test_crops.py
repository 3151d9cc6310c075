"""Boxes that a processor's centre crop cuts away: unknown evidence in training, nothing to measure in an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.families.processors import PROCESSORS, model_for
from PIL import Image

from ral.attention import prepare_prompt
from ral.config import RALConfig
from ral.data.check import check_records
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.data.settings import PromptSettings
from ral.data.shown_media import shown_media
from ral.evaluate.answering import Answered
from ral.evaluate.items import Item
from ral.evaluate.scoring import items_of
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.testbed import rings_task
from ral.families.tiles import showing
from ral.rollouts.group import ScoredGroup
from ral.rollouts.sampling import Completion
from ral.training.evidence import evidence_tokens
from ral.training.evidence_sources import SOURCES

MADE = PROCESSORS["llava"]()
PROCESSOR, MODEL = MADE[0], model_for("llava", MADE)
#: 90×60 pixels, of which the model is shown columns 15 to 75.
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
HIDDEN, ACROSS, SEEN = Box(1, 10, 14, 50), Box(3, 10, 23, 50), Box(32, 16, 60, 44)
TEXT = "<answer>red</answer>"


def row(*boxes: Box) -> Record:
    return Record("r", "<image>what?", "red", problem_type="free-form", images=(IMAGE,), boxes=boxes, origin="row 4")


def group(record: Record) -> ScoredGroup:
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=False, template="plain"))
    completion, zeros = Completion(torch.tensor(PROCESSOR.tokenizer.encode(TEXT)), False), torch.zeros(2)
    return ScoredGroup(
        record=record, prompt=prompt, completions=[completion] * 2, texts=[TEXT] * 2, rewards={}, reward=zeros,
        advantages=zeros, attention_advantages=zeros, weights=torch.ones(2, len(completion.ids)),
    )  # fmt: skip


@pytest.mark.parametrize("target", ["raised", "mixture"])
def test_in_training_the_evidence_of_a_cropped_box_is_not_known(target: str, tmp_path: Path) -> None:
    args = RALConfig(
        output_dir=str(tmp_path), attention_anchor="evidence", evidence_target=target, use_cpu=True, num_generations=2,  # type: ignore[arg-type]
        per_device_train_batch_size=8, think=False,
    )  # fmt: skip
    rows = [row(HIDDEN), row(HIDDEN, SEEN), row(SEEN), row(ACROSS)]
    hidden, both, seen, across = SOURCES["data"](args, PROCESSOR, MODEL, [group(one) for one in rows])
    assert hidden.evidence is None
    assert hidden.density is None
    assert both.evidence is not None and seen.evidence is not None and across.evidence is not None  # noqa: PT018
    assert torch.equal(both.evidence, seen.evidence)
    places = group(rows[0]).prompt.places
    assert across.evidence[places].view(4, 4).any(dim=0).tolist() == [True, False, False, False]
    if target == "mixture":
        assert both.density is not None and seen.density is not None  # noqa: PT018
        assert torch.equal(both.density, seen.density)
    shuffled = replace(args, evidence_control="shuffled")
    assert [one.evidence is None for one in SOURCES["data"](shuffled, PROCESSOR, MODEL, [group(one) for one in rows])] == [
        True, False, False, False,
    ]  # fmt: skip


def test_what_heads_are_chosen_by_is_not_known_either() -> None:
    [prompt] = [group(row(HIDDEN)).prompt]
    assert evidence_tokens(row(HIDDEN), prompt, PROCESSOR) is None
    assert evidence_tokens(row(SEEN), prompt, PROCESSOR).sum() == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("control", ["none", "random"])
def test_a_stated_box_that_is_cropped_is_left_out_and_counted(control: str, tmp_path: Path) -> None:
    args = RALConfig(
        output_dir=str(tmp_path), attention_anchor="evidence", evidence_from="completion", evidence_control=control,  # type: ignore[arg-type]
        evidence_box_space="image", use_cpu=True, num_generations=2, per_device_train_batch_size=8, think=False,
    )  # fmt: skip
    said = [f"{text} {TEXT}" for text in ("[1, 10, 14, 50]", "[1, 10, 14, 50] or [32, 16, 60, 44]")]
    ids = [torch.tensor(PROCESSOR.tokenizer.encode(text)) for text in said]
    completions, weights = [Completion(one, False) for one in ids], torch.ones(2, max(map(len, ids)))
    one = replace(group(row()), completions=completions, texts=said, weights=weights)
    [found] = SOURCES["completion"](args, PROCESSOR, MODEL, [one])
    assert found.boxes_left_out is not None
    assert found.boxes_left_out.tolist() == [2, 3]
    assert found.answer is not None
    assert found.answer.any(dim=1).tolist() == [False, True]
    assert found.evidence is not None
    assert found.evidence[1, len(ids[1]) - 1].sum() == 4


def evaluated(*records: Record) -> list[Item]:
    settings = EvalSettings(template="plain", think=False, probes="heads,sinks,masking")
    answered = [Answered(record, one.prompt, one.completions[0], TEXT) for record in records for one in [group(record)]]
    return list(items_of(MODEL, PROCESSOR, rings_task(1), answered, settings, set(), None))


def test_an_evaluation_measures_nothing_of_a_cropped_box() -> None:
    hidden, both, seen = evaluated(row(HIDDEN), replace(row(HIDDEN, SEEN), id="both"), replace(row(SEEN), id="seen"))
    assert (hidden.prediction, hidden.grounding, hidden.layers, hidden.probes) == ("red", None, None, None)
    assert both.grounding == seen.grounding is not None
    assert both.probes is not None and seen.probes is not None  # noqa: PT018
    assert both.probes["heads"] == seen.probes["heads"]
    assert both.probes["masking"]["tokens"] == seen.probes["masking"]["tokens"] == 4


def test_chance_is_that_of_the_part_of_the_picture_that_is_shown() -> None:
    """All that is shown is in the box, and all attention with it: the lift is 1, and there is no token outside."""
    [item] = evaluated(row(Box(0, 0, 90, 60)))
    assert item.grounding is not None
    assert (item.grounding.mass, item.grounding.lift) == pytest.approx((1, 1))
    assert np.isnan(item.grounding.auc)


def test_the_boxes_that_are_shown_end_at_the_crop() -> None:
    prompt = group(row(SEEN)).prompt
    found = shown_media(row(HIDDEN, ACROSS, SEEN), PROCESSOR, tiles=prompt.tiles)
    assert [(box.x0, box.x1) for box in found.boxes] == [pytest.approx((15, 23)), (32, 60)]
    assert shown_media(row(HIDDEN), PROCESSOR).boxes == (HIDDEN,)


def test_ral_check_counts_rows_whose_boxes_are_not_seen() -> None:
    rows = [
        row(HIDDEN),
        replace(row(HIDDEN, SEEN), id="b", problem="<image>which?"),
        replace(row(ACROSS), id="c", problem="<image>who?"),
    ]
    report = check_records(
        lambda on_error: rows, processor=PROCESSOR, prompt=PromptSettings(think=False, template="plain")
    )
    assert [(finding.kind, finding.is_error) for finding in report.findings] == [("unseen", False)]
    assert "row 4: the model sees none of its boxes" in report.findings[0].message
    assert "rows whose boxes the model does not see: 1" in report.to_text()


def test_controls_of_the_masking_probe_show_something() -> None:
    """A padded picture of 4×16 pixels fills one column of four; random controls are drawn from those of the picture."""
    padded = PROCESSORS["deepseek_vl"]()
    narrow = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 40, 3), dtype=np.uint8))
    record = Record("r", "<image>what?", "red", problem_type="free-form", images=(narrow,))
    prompt = prepare_prompt(
        model_for("deepseek_vl", padded), encode_prompt(padded[0], record, think=False, template="plain")
    )
    assert showing(prompt.tiles).reshape(4, 4).tolist() == [[False, True, True, False]] * 4
