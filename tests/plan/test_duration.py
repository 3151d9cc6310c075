from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ral.attention import forward_groups, prepare_prompt
from ral.plan.duration import (
    Machine,
    decoding_seconds,
    duration,
    forward_flops,
    gathering_seconds,
    rows_seconds,
)
from ral.plan.shapes import weights_of
from tests.plan.test_memory import G, P, R, published, setup_for
from tests.tiny import completions, tiny_model


def test_a_forward_has_the_operations_that_are_counted() -> None:
    model = tiny_model("llama")
    known = prepare_prompt(model, {"input_ids": torch.randint(0, 90, (1, P))})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward_groups(model, [known], [completions((R,) * G)], layers=())
    setup = setup_for(model, weights_of(model, None, four_bits=False))
    decoder = setup.model.decoder
    # The counter does not know the CPU's attention kernel: four operations for a pair of query and key and a channel.
    attention = len(decoder.layers) * 4 * decoder.layers[0].queries * (P**2 / 2 + G * R * (P + G * R))
    assert forward_flops(setup, setup.model) - attention == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_published_run_takes_days_not_weeks() -> None:
    """51.2k prompts, one epoch, two updates a rollout batch of 128 prompts on 8 GPUs; the paper says about 120 hours."""
    found = duration(published(rollout_rows=8), Machine(), steps=800)
    assert found.prompts == 128
    assert found.hours == pytest.approx(800 * found.step / 3600)
    assert 30 < found.hours < 240


def test_sampling_the_whole_step_at_once_takes_a_sixteenth_of_the_decoding_steps() -> None:
    """Of 8 completions a decoding step takes what its kernels take to start; of 128 twice that, for their keys and values."""
    one, all_at_once = (duration(published(rollout_rows=rows), Machine(), None) for rows in (8, None))
    assert (one.updates, one.passes) == (all_at_once.updates, all_at_once.passes)
    assert one.rollouts / all_at_once.rollouts > 10
    assert duration(published(rollout_rows=64), Machine(), None).rollouts == pytest.approx(one.rollouts / 8, rel=0.1)


def test_parts_of_a_rollout_batch_share_its_sampling_and_their_later_ones_have_an_old_pass() -> None:
    """With three parts a step's share of the rollouts is as before; two of three micro-batches have a pass more, before any update."""
    one, three = (published(parts=parts, rollout_rows=8, iterations=1, captured=0) for parts in (1, 3))
    alone, together = (duration(setup, Machine(), None) for setup in (one, three))
    assert (together.rollouts, together.prompts) == (pytest.approx(alone.rollouts), 3 * alone.prompts)
    forward = forward_flops(one, one.model) / (0.4 * 989e12)
    assert alone.passes == pytest.approx(16 * forward)  # the reference's
    assert together.passes == pytest.approx(16 * forward * (1 + 2 / 3))


def test_rows_are_multiplied_in_32_bits_by_the_heads_that_they_are_the_mean_of() -> None:
    """By hand: 8 · 1,024 queries of 28 heads with 2,304 keys of 128 numbers; in an update four times, in the forward and thrice in the
    backward."""
    every, four, none = (published(**heads) for heads in ({}, {"heads": 4}, {"captured": 0}))
    products = 2 * 8 * 1024 * (1280 + 1024) * 28 * 128 / (0.4 * 67e12)
    assert rows_seconds(every, Machine()) == pytest.approx(products)
    assert rows_seconds(four, Machine()) == pytest.approx(products / 7)
    updates = [duration(setup, Machine(), None).updates for setup in (every, four, none)]
    assert updates[0] - updates[2] == pytest.approx(16 * 4 * products)
    assert updates[1] - updates[2] == pytest.approx(16 * 4 * products / 7)


def test_shards_on_the_host_are_brought_for_every_gathering_and_updated_there() -> None:
    """By hand, of 7B on 8 GPUs: 8.292 · 4 / 8 billion bytes of weights for each gathering, and to update 7.616 / 8 billion parameters
    28 bytes each (weight, gradient and two states are read, weight and states written), at 0.05 TB/s.
    """
    here = published(gathered=False)
    there = replace(here, offloaded=True, offloaded_weights=True)
    brought = 8.292e9 * 4 / 8 / 0.05e12
    assert gathering_seconds(there, Machine()) - gathering_seconds(here, Machine()) == pytest.approx(brought, rel=1e-3)
    before, after = (duration(setup, Machine(), None).updates for setup in (here, there))
    assert after - before == pytest.approx(28 * 7.616e9 / 8 / 0.05e12, rel=1e-3)  # while layers compute, shards come
    zero = published(sharding="zero2")
    before, after = (duration(replace(zero, offloaded=on), Machine(), None).updates for on in (False, True))
    assert after - before == pytest.approx((28 + 2 + 2) * 7.616e9 / 8 / 0.05e12, rel=1e-3)


def test_halving_the_utilisation_doubles_the_updates() -> None:
    fast, slow = (duration(published(), Machine(utilisation=share), None) for share in (0.5, 0.25))
    assert slow.updates == pytest.approx(2 * fast.updates)
    assert slow.hours is None


def test_decoding_waits_for_memory_or_for_kernels_to_start() -> None:
    setup, instant = published(rollout_rows=8), Machine(layer_ms=1e-9)
    assert decoding_seconds(setup, Machine()) == pytest.approx(28.44e-3)  # of 28 layers, and what is outside of them
    read = 2 * setup.model.active
    assert decoding_seconds(setup, instant) == pytest.approx(read / 3.35e12, rel=0.1)
    # Without shards autocast casts all weights in every decoding step.
    assert decoding_seconds(replace(setup, sharding="ddp"), instant) > 3.5 * decoding_seconds(setup, instant)


def test_a_decoding_step_reads_a_key_and_a_value_of_every_token_so_far() -> None:
    setup, instant = published(rollout_rows=8), Machine(layer_ms=1e-9)
    longer = replace(setup, completion=setup.completion + 2048)  # on average half of them are written
    more = 2 * 28 * (4 * 128) * 2 * 8 * 2048 / 2  # key and value, layers, width, bytes, completions, tokens
    assert decoding_seconds(longer, instant) - decoding_seconds(setup, instant) == pytest.approx(more / 3.35e12)


def test_a_prompt_more_has_its_cache_and_its_draws() -> None:
    """By hand, of 8 completions more: 28 layers of 2 · 512 numbers, of the prompt in 32 bits and of 8 · 512 tokens (half of them are written)
    in 16; and 8 draws among 152,064 words, each of 32 bytes that are written and read.
    """
    instant = Machine(layer_ms=1e-9)
    one, two = (decoding_seconds(published(rollout_rows=rows), instant) for rows in (8, 16))
    more = 28 * 1024 * (4 * 1280 + 2 * 8 * 512) + 8 * 152064 * 2 * 32
    assert two - one == pytest.approx(more / 3.35e12)


@pytest.mark.parametrize("wrong", [{"tflops": 0}, {"utilisation": 1.5}, {"bandwidth": -1}])
def test_a_machine_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Machine(**wrong)
