"""The order of prompts: inner updates, epochs, processes."""

from __future__ import annotations

import itertools

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st

from ral.data.mixture import Part, epoch_order
from ral.training.batches import RepeatedBatches


def test_a_step_comes_once_per_inner_update() -> None:
    batches = RepeatedBatches(10, batch_size=2, per_step=2, repeats=3, shuffle=False, seed=0)
    first, second = [[0, 1], [2, 3]], [[4, 5], [6, 7]]
    assert list(batches) == first * 3 + second * 3
    assert len(batches) == 12
    assert batches.dropped == 2


SIZES = {
    "size": st.integers(1, 60),
    "batch_size": st.integers(1, 4),
    "per_step": st.integers(1, 4),
    "repeats": st.integers(1, 3),
}


@settings(max_examples=50)
@given(st.fixed_dictionaries(SIZES), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_prompt_once_per_inner_update_but_the_dropped(
    sizes: dict[str, int], seed: int, epoch: int
) -> None:
    if sizes["size"] < sizes["batch_size"] * sizes["per_step"]:
        return
    batches = RepeatedBatches(**sizes, shuffle=True, seed=seed)
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    assert {len(batch) for batch in found} == {sizes["batch_size"]}
    per_step, repeats = sizes["per_step"], sizes["repeats"]
    seen = []
    for start in range(0, len(found), per_step * repeats):
        step = found[start : start + per_step * repeats]
        assert step == step[:per_step] * repeats
        seen += itertools.chain.from_iterable(step[:per_step])
    assert len(seen) == len(set(seen)) == sizes["size"] - batches.dropped
    assert batches.dropped < sizes["batch_size"] * per_step


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = RepeatedBatches(20, 2, 2, 1, shuffle=True, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("processes", [2, 3])
def test_every_process_sees_its_own_prompts_again(processes: int) -> None:
    """Accelerate deals the micro-batches out in turn; a step has A of them for each process."""
    accumulation, repeats = 2, 3
    batches = RepeatedBatches(40, 2, accumulation * processes, repeats, shuffle=True, seed=0)
    shards = [
        list(BatchSamplerShard(batches, num_processes=processes, process_index=i, split_batches=False))
        for i in range(processes)
    ]
    assert {len(shard) for shard in shards} == {batches.steps * accumulation * repeats}
    for shard in shards:
        for start in range(0, len(shard), accumulation * repeats):
            step = shard[start : start + accumulation * repeats]
            assert step == step[:accumulation] * repeats
    prompts = [set(itertools.chain.from_iterable(shard)) for shard in shards]
    assert len(set.union(*prompts)) == sum(len(own) for own in prompts), "no prompt is on two processes"


def test_too_few_prompts_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"7 prompts.*takes 8 \(2 per micro-batch × 4 micro-batches\).*lower"):
        RepeatedBatches(7, 2, 4, 1, shuffle=False, seed=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mixture_is_dealt_out_by_its_shares(processes: int) -> None:
    """What one process sees of an epoch is what several see together, and a resumed run goes on in it."""
    parts = [Part(8, 2.0), Part(40, 1.0)]  # 8 + 4 an epoch
    batches = RepeatedBatches(48, 2, 2, 1, shuffle=True, seed=0, parts=parts)
    assert (batches.steps, batches.dropped) == (3, 0)
    batches.set_epoch(5)
    shards = [
        list(BatchSamplerShard(batches, num_processes=processes, process_index=i, split_batches=False))
        for i in range(processes)
    ]
    seen = [place for row in zip(*shards, strict=True) for batch in row for place in batch]
    assert seen == epoch_order(parts, 0, 5)
    assert sum(place < 8 for place in seen) == 8
