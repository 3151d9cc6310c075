"""Spans of a document as the tokens that spell them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ral.data.prompt import encode_prompt
from ral.data.record import Record, Span
from ral.data.spans import passage
from ral.errors import DataError
from ral.testbed.model import build_tokenizer
from ral.testbed.needles import needle_records
from ral.testbed.rings import ring_records

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
