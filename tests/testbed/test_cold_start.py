from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from experiments.testbed.cold_start import ColdStart, cold_start, encode_example, example_loss

from ral.attention import forward_group
from ral.testbed import load_start
from ral.testbed.episodes import episode_records, told_records
from ral.testbed.rings import ring_records

SETTINGS = ColdStart(steps=12, batch_size=6, warmup=2)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list:
    pytest.importorskip("minigrid")
    cache = tmp_path_factory.mktemp("episodes")
    return [*episode_records(3, 0, cache=cache), *ring_records(2, 0), *told_records(1, 0)]


def test_the_loss_of_a_mixed_batch_is_that_of_its_examples_alone(records: list) -> None:
    model, processor = load_start()
    examples = [encode_example(processor, record, SETTINGS) for record in records]
    alone = [forward_group(model, inputs, [ids]).logps[0] for inputs, ids in examples]
    expected = -torch.cat(alone).mean()
    found = example_loss(model, examples)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert model.model.visual.patch_embed.proj.weight.grad.norm() > 0, "the tower learns to see what moves"
    assert processor.decode(examples[0][1]).endswith(f"<answer>{records[0].solution}</answer><|im_end|>")


def test_it_learns_and_repeats_itself(records: list) -> None:
    losses = []
    for _ in range(2):
        model, processor = load_start()
        losses.append([loss for _, loss in cold_start(model, processor, records, SETTINGS)])
    assert losses[0] == losses[1]
    assert len(losses[0]) == SETTINGS.steps
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_a_run_that_was_cut_off_goes_on_exactly(records: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.testbed.cold_start.SAVED", 2)
    settings, state = replace(SETTINGS, steps=6), tmp_path / "start" / "unfinished.pt"
    whole = list(cold_start(*load_start(), records, settings))
    first = list(islice(cold_start(*load_start(), records, settings, state), 5))
    rest = list(cold_start(*load_start(), records, settings, state))
    assert (first, rest) == (whole[:5], whole[4:])


def test_an_example_without_a_trace_is_taught_to_answer_at_once() -> None:
    _, processor = load_start()
    [record] = ring_records(1, 0)
    thinking, ids = encode_example(processor, record, SETTINGS)
    assert processor.decode(ids).startswith("<think>")
    direct, ids = encode_example(processor, replace(record, trace=None), SETTINGS)
    assert processor.decode(ids) == f"{record.solution}<|im_end|>"
    assert not torch.equal(direct["input_ids"], thinking["input_ids"]), "the instruction is the one for direct answers"
