"""Prompts that are encoded ahead, in this process or in others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ral.data.loading import AHEAD, Again, PromptData, encoded
from ral.data.prompt import encode_prompt
from ral.data.settings import PromptSettings
from ral.errors import DataError
from ral.testbed import load_start
from ral.testbed.rings import ring_records

PROCESSOR = load_start()[1]
SETTINGS = PromptSettings(template="plain")
RECORDS = ring_records(8, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_prompts_come_in_the_order_that_is_asked_for(workers: int) -> None:
    data = PromptData(RECORDS, PROCESSOR, SETTINGS)
    before = torch.get_rng_state()
    found = list(encoded(data, [5, 0, 3], workers))
    assert torch.equal(torch.get_rng_state(), before), "no random number is taken from training"
    assert [number for number, _ in found] == [5, 0, 3]
    for number, inputs in found:
        expected = encode_prompt(PROCESSOR, RECORDS[number], SETTINGS)
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_only_a_few_prompts_are_encoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    done = torch.zeros(1, dtype=torch.int32).share_memory_()

    def counted(*arguments: object) -> dict[str, torch.Tensor]:
        done.add_(1)
        return {"input_ids": torch.zeros(1, 1)}

    monkeypatch.setattr("ral.data.loading.encode_prompt", counted)
    for workers, most in ((0, 1), (1, 1 + AHEAD)):
        done.zero_()
        data = encoded(PromptData(RECORDS, PROCESSOR, SETTINGS), range(8), workers)
        next(data)
        data.close()  # the workers end here
        assert 1 <= int(done) <= most


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_record_is_the_one_that_it_is_without_workers(workers: int) -> None:
    bad = replace(RECORDS[1], images=(Path("gone.png"),), origin="rings.json: row 1")
    with pytest.raises(DataError) as caught:
        list(encoded(PromptData([RECORDS[0], bad], PROCESSOR, SETTINGS), range(2), workers))
    assert str(caught.value).startswith("rings.json: row 1: image gone.png: no such file")
    assert any("rings.json: row 1" in note for note in caught.value.__notes__)


def test_what_was_encoded_in_the_same_step_is_not_encoded_again() -> None:
    data = PromptData(RECORDS, PROCESSOR, SETTINGS)
    assert data[Again(2)].opened() is None
    assert data[2].opened() is not None
    assert Again(2) == 2
