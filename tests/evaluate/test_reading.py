"""Grounding in text: the map at the row that predicts the answer, against eager attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ral.attention import prepare_prompt
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.data.spans import passage
from ral.evaluate.looking import look
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.selection import find_task
from ral.testbed.model import build_text_model, build_tokenizer
from ral.testbed.needles import needle_records
from tests.tiny import twin

TOKENIZER = build_tokenizer()


def ids_of(record: Record) -> torch.Tensor:
    return encode_prompt(TOKENIZER, record, think=True, template="plain")["input_ids"][0]


def test_the_map_of_a_document_is_that_of_eager_attention() -> None:
    model = build_text_model(TOKENIZER).eval()
    [record] = needle_records(1, 0)
    ids, written = ids_of(record), torch.tensor(TOKENIZER.encode("<think>x</think><answer>red</answer>"))
    found = passage(TOKENIZER, ids, record)
    assert found is not None
    prompt = prepare_prompt(model, {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]})
    (seen,) = look(model, [prompt], [written], [4], documents=[found.tokens])
    with torch.no_grad():
        eager = twin(model)(input_ids=torch.cat([ids, written])[None], output_attentions=True).attentions
    assert len(seen.layers) == len(eager) == 2
    for layer, attention in zip(seen.layers, eager, strict=True):
        row = attention[0].mean(0)[len(ids) + 3, found.tokens]
        assert layer.maps[0].shape == (1, len(row))
        np.testing.assert_allclose(layer.maps[0][0], row.numpy(), atol=1e-6)
        assert layer.visual_share == pytest.approx(float(row.sum()), abs=1e-5)


def test_evaluation_reports_where_in_the_text_it_looked(tmp_path: Path) -> None:
    model = build_text_model(TOKENIZER)
    settings = EvalSettings(think=False, template="plain", max_completion_length=2, show=1)
    summary = evaluate(model, TOKENIZER, find_task("needles", n=4), tmp_path, settings=settings)
    assert summary.grounding is not None
    assert summary.layers is not None
    assert 0 < summary.grounding.mass < 1
    assert 0 < summary.grounding.visual_share < 1
    assert len(summary.layers) == 2
