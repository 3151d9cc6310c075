"""The room that rollouts take, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ral.rollouts.room import SHARE, RowSize, device_memory
from tests.tiny import TEXT_KINDS, VISION_KINDS, tiny_model


def test_a_row_of_a_7b_model_by_hand() -> None:
    """28 layers, 4 heads of 128 for keys and as many for values, 16 bits; 1,024 tokens behind an eighth of 1,280."""
    size = RowSize(token=28 * 2 * 4 * 128, state=0, heads=28, vocabulary=152_064, value_bytes=2)
    kept = 28 * 2 * 512 * 2 * (1024 + 160)
    assert size.bytes(1280, 1024, 8) == kept + 3 * 28 * 2304 * 4 + 152_064 * 32
    assert size.rows(80 * 2**30, 1280, 1024, 8) == int(SHARE * 80 * 2**30 / size.bytes(1280, 1024, 8)) == 292
    assert size.rows(1e6, 1280, 1024, 8) == 8, "one prompt's at least"
    assert size.bytes(1280, 1025, 8) > size.bytes(1280, 1024, 8) == size.bytes(1280, 1000, 8) + 3 * 28 * 24 * 4


def test_a_state_counts_once_and_a_prompt_that_is_not_shared_for_each_completion() -> None:
    size = RowSize(token=100, state=1000, heads=1, vocabulary=1, value_bytes=2)
    assert size.bytes(640, 64, 8) == replace(size, state=0).bytes(640, 64, 8) + 4000
    assert replace(size, shared=False).bytes(640, 64, 8) == size.bytes(640, 64, 8) + 100 * 2 * 640 * 7 / 8


@pytest.mark.parametrize("kind", [*VISION_KINDS, *TEXT_KINDS])
def test_sizes_are_read_from_the_text_model(kind: str) -> None:
    expected = RowSize(token=3 * 2 * 2 * 8, state=0, heads=4, vocabulary=100, value_bytes=4)
    assert RowSize.of(tiny_model(kind)) == expected
    assert RowSize.of(tiny_model(kind).bfloat16()).value_bytes == 2


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = device_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_memory(torch.device("cpu")) == whole / 4 > 2**20
