"""Attention on a fixed text: two checkpoints look while they are made to write the same words."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ral.errors import DataError
from ral.evaluate.items import read_items
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.testbed import rings_task
from ral.testbed import load_start

SETTINGS = EvalSettings(template="plain", max_completion_length=24, show=0)


def test_a_model_on_its_own_words_is_itself_and_another_looks_elsewhere_on_them(tmp_path: Path) -> None:
    model, processor = load_start()
    own = evaluate(model, processor, rings_task(12), tmp_path / "own", settings=SETTINGS)
    fixed = EvalSettings(**vars(SETTINGS) | {"text_from": str(tmp_path / "own")})
    again = evaluate(model, processor, rings_task(12), tmp_path / "again", settings=fixed)
    assert (again.accuracy, again.tokens) == (own.accuracy, own.tokens)
    assert again.grounding is not None and own.grounding is not None  # noqa: PT018
    assert again.grounding.mass == pytest.approx(own.grounding.mass, abs=1e-6)
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.model.language_model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    found = evaluate(other, processor, rings_task(12), tmp_path / "other", settings=fixed)
    texts = [[item.completion for item in read_items(tmp_path / name / "items.jsonl")] for name in ("own", "other")]
    assert texts[0] == texts[1]
    assert found.grounding is not None
    assert abs(found.grounding.mass - own.grounding.mass) > 0.01
    with pytest.raises(
        DataError, match=r"text_from=.*own holds no completion of 'rings--1-12'; evaluate the same items"
    ):
        evaluate(model, processor, rings_task(13), tmp_path / "more", settings=fixed)


def test_a_folder_without_items_is_refused(tmp_path: Path) -> None:
    nowhere = EvalSettings(**vars(SETTINGS) | {"text_from": str(tmp_path)})
    with pytest.raises(DataError, match=r"expected the folder of an evaluation, with items\.jsonl in it"):
        evaluate(*load_start(), rings_task(1), tmp_path / "out", settings=nowhere)
