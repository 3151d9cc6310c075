"""Grounding in text: the evidence's tokens, and the map at the row that predicts the answer, against eager attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ral.attention import prepare_prompt
from ral.data.prompt import encode_prompt
from ral.data.record import DataError, Record, Span
from ral.evaluate.looking import look
from ral.evaluate.reading import passage
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.selection import find_task
from ral.testbed.model import build_text_model, build_tokenizer
from ral.testbed.needles import needle_records
from ral.testbed.rings import ring_records
from tests.tiny import twin

TOKENIZER = build_tokenizer()


def ids_of(record: Record) -> torch.Tensor:
    return encode_prompt(TOKENIZER, record, think=True, template="plain")["input_ids"][0]


def test_spans_become_the_tokens_that_spell_them() -> None:
    for record in needle_records(20, 0):
        ids = ids_of(record)
        found = passage(TOKENIZER, ids, record)
        assert found is not None
        assert record.document is not None
        document = ids[found.tokens]
        assert TOKENIZER.decode(document) == record.problem[record.document.start : record.document.stop]
        [(box, span)] = zip(found.boxes, record.evidence, strict=True)
        assert TOKENIZER.decode(document[int(box.x0) : int(box.x1)]) == record.problem[span.start : span.stop]
        assert found.sizes == [(len(document), 1)]


def test_other_records_have_no_passage_and_spans_must_fit() -> None:
    [record] = needle_records(1, 0)
    ids = ids_of(record)
    assert passage(TOKENIZER, ids, replace(record, document=None)) is None
    assert passage(TOKENIZER, ids, replace(ring_records(1, 0)[0], document=Span(0, 4))) is None
    with pytest.raises(DataError, match="needles-0-0: evidence at characters 0 to 4 is not in the document"):
        passage(TOKENIZER, ids, replace(record, evidence=(Span(0, 4),)))
    with pytest.raises(DataError, match="does not spell out"):
        passage(TOKENIZER, ids[:9], record)


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
