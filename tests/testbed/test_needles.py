from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ral.errors import DataError
from ral.testbed.model import build_text_model, build_tokenizer
from ral.testbed.needles import needle_records, needles, recital_records
from ral.testbed.rings import COLOURS


@given(seed=st.integers(0, 10**6), lines=st.integers(1, 40), data=st.data())
@settings(max_examples=50, deadline=None)
def test_one_line_answers_and_it_is_the_evidence(seed: int, lines: int, data: st.DataObject) -> None:
    rings = data.draw(st.integers(1, min(lines, len(COLOURS))))
    [needle] = needles(1, seed, lines=lines, rings=rings)
    record = needle.record()
    [span] = record.evidence
    assert record.document is not None
    text = record.problem[record.document.start : record.document.stop]
    assert record.problem == f"{needle.question}\n{text}"
    assert len(text.splitlines()) == lines
    facts = re.findall(r"the (\w+) ring:(\w+)", text)
    assert len(facts) == len(dict(facts)) == rings, "each ring has a colour of its own"
    assert dict(facts)[needle.colour] == record.solution
    assert record.problem[span.start : span.stop].endswith(f"the {needle.colour} ring:{record.solution}")
    assert record.problem[span.start : span.stop] in text.splitlines()
    assert needle.colour in needle.question
    assert not any(colour in line for line in needle.lines if "ring" not in line for colour in COLOURS)


def test_a_longer_list_starts_with_a_shorter_one_and_seeds_differ() -> None:
    assert needle_records(5, 0)[:3] == needle_records(3, 0)
    assert needle_records(3, 1)[0].problem != needle_records(3, 0)[0].problem


def test_a_recital_says_all_that_its_text_says() -> None:
    [record] = recital_records(1, 0)
    assert record.trace is not None
    facts = re.findall(r"the (\w+) ring:(\w+)", record.problem)
    told = re.findall(r"the (\w+) ring:(\w+)", record.trace)
    assert sorted(told) == sorted(facts)
    assert told[-1][1] == record.solution


@pytest.mark.parametrize("wrong", [{"n": 0}, {"rings": 9}, {"lines": 3, "rings": 4}, {"rings": 0}])
def test_what_cannot_be_written_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        needles(**{"n": 1, "seed": 0} | wrong)


def test_the_text_model_is_small_seeded_and_reads_every_word_as_a_token() -> None:
    tokenizer = build_tokenizer()
    words = " ".join(record.problem.replace(":", " ").replace("?", " ") for record in needle_records(20, 0)).split()
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in words)
    one, same = (build_text_model(tokenizer) for _ in range(2))
    assert one.num_parameters() < 1_000_000
    assert one.lm_head.weight.equal(same.lm_head.weight)
    assert one.generation_config.eos_token_id == tokenizer.eos_token_id
