"""What the formulas count is what autograd saves, and what the settings are there to save."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from experiments.families.zoo import tiny
from peft import LoraConfig, get_peft_model
from torch import nn

from ral.attention import forward_groups, prepare_prompt
from ral.attention.models import make_capturable
from ral.plan.memory import ASLEEP, AWAKE, GIB, Item, Memory, block_bytes, host_memory, masks_bytes, memory
from ral.plan.setup import Setup, served
from ral.plan.shapes import Weights, meta_model, meta_shape, shape_of, weights_of
from tests.tiny import TEXT_KINDS, VISION_KINDS, completions, tiny_model

G, R, P = 4, 8, 300


def setup_for(model: nn.Module, weights: Weights, **changes: object) -> Setup:
    settings: dict = {
        "model": shape_of(model), "weights": weights, "gpus": 1, "sharding": "ddp", "gathered": True, "mixed": False,
        "checkpointing": False, "prompt": P, "visual": 0, "completion": R, "group": G, "prompts": 1, "accumulation": 1,
        "iterations": 2, "captured": 0, "reference": False, "reference_pass": False, "target_pass": False, "norm_steps": 0,
        "optimiser": 8,
    }  # fmt: skip
    return Setup(**settings | changes)


def saved(model: nn.Module, mixed: bool = False, prompt: int = P, completion: int = R) -> float:
    """Bytes that a packed forward saves for the backward, weights and their copies left out."""
    known = prepare_prompt(model, {"input_ids": torch.randint(0, 90, (1, prompt))})
    kept: dict[int, torch.Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.T.shape) for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        copied = mixed and tuple(tensor.shape) in shapes
        if tensor.untyped_storage().data_ptr() not in weights and not copied:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    amp = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), amp:
        forward_groups(model, [known], [completions((completion,) * G)], layers=())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def per_block(kind: str, mixed: bool = False, adapter: LoraConfig | None = None) -> tuple[float, Setup]:
    """Measured bytes of one block, as the difference that one more layer makes; and the setup of that model."""
    found = []
    for layers in (2, 3):
        model: nn.Module = tiny_model(kind, num_hidden_layers=layers).train()
        weights = weights_of(model, adapter, four_bits=False, frozen_vision=False)  # type: ignore[arg-type]
        built = model if adapter is None else get_peft_model(model, adapter)  # type: ignore[arg-type]
        found.append(saved(built, mixed))
    return found[1] - found[0], setup_for(tiny_model(kind), weights, mixed=mixed)


@pytest.mark.parametrize("kind", VISION_KINDS + TEXT_KINDS)
def test_a_block_saves_what_is_counted(kind: str) -> None:
    measured, setup = per_block(kind)
    assert block_bytes(setup, setup.model.decoder.layers[-1]) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3"])
def test_a_block_in_mixed_precision_saves_what_is_counted(kind: str) -> None:
    measured, setup = per_block(kind, mixed=True)
    assert block_bytes(setup, setup.model.decoder.layers[-1]) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("kind", "tolerance"), [("qwen3_moe", 0.15), ("gemma3_text", 0.05), ("qwen3_5_text", 0.1)])
def test_layers_of_every_kind_save_about_what_is_counted(kind: str, tolerance: float) -> None:
    """Experts, windows with four norms, recurrent layers: the sum over the layers of a model, and its two ends.

    Recurrent layers work in chunks of 64 tokens (a completion and one more); on a CPU experts are multiplied one by one, which copies more.
    """
    model, _ = tiny(kind)
    setup = setup_for(model, weights_of(model, None, four_bits=False), prompt=256, completion=127)
    counted = sum(block_bytes(setup, layer) for layer in setup.model.decoder.layers)
    ends = setup.tokens * setup.model.decoder.hidden * 4 * 4 + masks_bytes(setup)
    found = saved(make_capturable(model).train(), prompt=256, completion=127)
    assert counted + ends == pytest.approx(found, rel=tolerance)


def published(size: str = "7B", **changes: object) -> Setup:
    """The paper's setting: all weights, 8 GPUs, 8 completions, in 16 bits, sharded, with checkpoints and a reference."""
    model, _ = meta_model(f"Qwen/Qwen2.5-VL-{size}-Instruct")
    paper = {
        "gpus": 8, "sharding": "fsdp2", "mixed": True, "checkpointing": True, "prompt": 1280, "visual": 1024,
        "completion": 1024, "group": 8, "accumulation": 16, "captured": 1, "reference": True, "reference_pass": True,
    }  # fmt: skip
    return setup_for(model, weights_of(model, None, four_bits=False), **paper | changes)


def sizes(found: Memory) -> dict[str, float]:
    return {item.name: item.size for item in found.items if "update" in item.phases}


def test_the_published_setting_fits_when_sharded_and_not_otherwise() -> None:
    for sharding in ("fsdp2", "zero3"):
        assert memory(published(sharding=sharding)).peak < 80 * GIB
    assert memory(published(sharding="ddp")).peak > 80 * GIB
    # By hand: 8.29 billion weights of four bytes and 7.62 billion trained ones with eight bytes of states, over 8 GPUs.
    items = sizes(memory(published()))
    assert items["weights (shard)"] == pytest.approx(8.292e9 * 4 / 8, rel=1e-3)
    assert items["optimiser states (shard)"] == pytest.approx(7.616e9 * 8 / 8, rel=1e-3)
    assert items["weights to compute with"] == pytest.approx(8.292e9 * 2, rel=1e-3)


def test_zero_spreads_what_its_stage_says() -> None:
    two, three = (sizes(memory(published(sharding=f"zero{stage}"))) for stage in (2, 3))
    assert two["weights, 16 bits"] == pytest.approx(2 * 8.292e9, rel=1e-3)
    assert three["weights, 16 bits (shard)"] == two["weights, 16 bits"] / 8
    assert two["trained weights, 32 bits (shard)"] == pytest.approx(4 * 7.616e9 / 8, rel=1e-3)


def test_four_bits_are_what_an_adapter_needs_least() -> None:
    model, _ = meta_model("Qwen/Qwen2.5-VL-72B-Instruct")
    adapter = LoraConfig(r=64, target_modules="all-linear", exclude_modules=".*visual.*")
    half, quarter = (weights_of(model, adapter, four_bits=bits) for bits in (False, True))
    assert half.stored - 4 * half.trained == pytest.approx(2 * 73.41e9, rel=1e-3)
    assert quarter.stored - 4 * quarter.trained == pytest.approx(0.5625 * 71e9 + 2 * 2.4e9, rel=0.03)
    assert quarter.trained == half.trained == pytest.approx(0.842e9, rel=0.01)


@pytest.mark.parametrize(
    ("change", "effect"),
    [
        ({"checkpointing": False}, 1), ({"prompts": 2}, 1), ({"completion": 2048}, 1),
        ({"group": 4}, -1), ({"prompt": 700, "visual": 400}, -1), ({"reference": False}, -1), ({"gpus": 16}, -1),
    ],
)  # fmt: skip
def test_every_setting_goes_its_way(change: dict, effect: int) -> None:
    base = published()
    assert (memory(replace(base, **change)).peak > memory(base).peak) == (effect > 0)


def test_measured_norms_take_a_gradient_of_each_term_in_shards_where_there_are_any() -> None:
    name = "gradients of each term, to measure their norms"
    for changes, share in (({}, 2 / 8), ({"sharding": "ddp"}, 3), ({"sharding": "ddp", "accumulation": 1}, 2)):
        found = sizes(memory(published(norm_steps=10, **changes)))[name]
        assert found == pytest.approx(share * 4 * 7.616e9, rel=1e-3), changes
    assert name not in sizes(memory(published(norm_steps=0)))


def test_the_peak_is_that_of_the_largest_phase() -> None:
    found = Memory((Item("a", 2.0, ("rollouts", "update")), Item("b", 3.0, ("rollouts",)), Item("c", 4.0, ("update",))))
    assert (found.peak_phase, found.peak) == ("update", 6.0)


def in_phase(found: Memory, phase: str) -> dict[str, float]:
    return {item.name: item.size for item in found.items if phase in item.phases}


def test_the_cache_holds_a_key_and_a_value_of_every_token() -> None:
    """By hand, of Qwen2.5-VL-7B in 16 bits: 28 layers with 4 heads of 128 for keys and as many for values."""
    setup = published(sharding="ddp", reference=False, rollout_rows=8)
    per_token = 2 * 4 * 128 * 2  # key and value, heads, width, bytes
    prompt, rollouts = 1280, 8 * 1024
    scores = 3 * 8 * 28 * (1280 + 1024) * 4
    expected = 28 * (prompt + rollouts) * per_token + rollouts * per_token + scores
    assert in_phase(memory(setup), "rollouts")["key/value cache"] == expected
    for rows, prompts in ((7, 1), (31, 3), (1000, 16), (None, 16)):  # whole prompts, and no more than a step has
        found = in_phase(memory(replace(setup, rollout_rows=rows)), "rollouts")["key/value cache"]
        assert found == prompts * expected, rows


def test_rows_reach_over_prompt_and_completion() -> None:
    """Kept of every prompt are its old rows [G, R, P + R]; the explore anchor keeps those of its target beside them."""
    kept = {
        (captured, target): in_phase(memory(published(captured=captured, target_pass=target)), "update")[
            "prompts and rollouts of the step"
        ]
        for captured, target in ((0, False), (1, False), (2, False), (1, True))
    }
    row = 16 * 4 * 8 * 1024 * (1280 + 1024)  # prompts of a step, float32, G, R, P + R
    assert kept[1, False] - kept[0, False] == row
    assert kept[2, False] - kept[0, False] == 2 * row
    assert kept[1, True] - kept[1, False] == row


# --- where weights are, and what samples --------------------------------------------------------------------------


def test_weights_that_layers_give_back_are_two_layers_and_what_is_used_outside_of_its_call() -> None:
    """By hand, of Qwen2.5-VL-7B in 16 bits: layers of 233M, tower of 677M, output embedding of 545M; the last layer is captured."""
    items = sizes(memory(published(gathered=False)))
    assert items["weights to compute with"] == pytest.approx(2 * (3 * 233.0e6 + 676.6e6 + 545.0e6), rel=2e-3)
    reference = in_phase(memory(published(gathered=False)), "passes")
    assert reference["reference model (shard)"] == pytest.approx(8.292e9 * 2 / 8, rel=1e-3)
    assert reference["reference model, gathered"] == pytest.approx(2 * (2 * 233.0e6 + 676.6e6 + 545.0e6), rel=2e-3)
    assert memory(published(gathered=False)).peak < memory(published()).peak - 12 * GIB


def test_a_server_on_the_same_gpus_is_there_while_it_samples_and_little_of_it_afterwards() -> None:
    setup = served(published(gathered=False), "shared", 80, servers=2)
    found = memory(setup)
    awake, asleep = in_phase(found, "rollouts"), in_phase(found, "update")
    assert awake["the server's weights"] == 2 * 8.292166656e9 / 4 + AWAKE
    # 512 rollouts of a server over four GPUs: keys and values of 16 bits, 28 layers of 4 heads of 128.
    assert awake["the server's keys and values"] == 512 * 2 * 28 * 2 * 512 * (1280 / 8 + 1024) / 4
    assert asleep["the sleeping server"] == ASLEEP
    assert "key/value cache" not in awake
    elsewhere = memory(served(published(gathered=False), "server", 80))
    assert elsewhere.total("rollouts") < found.total("rollouts") - 8 * GIB


def test_the_host_holds_a_model_for_every_process_that_reads_it() -> None:
    every = replace(published(), loads=8)
    assert host_memory(every) - host_memory(replace(every, loads=1)) == pytest.approx(
        4 * (8 * 8.292e9 - 8.292e9), rel=1e-3
    )
    offloaded = host_memory(replace(published(sharding="zero2"), offloaded=True)) - host_memory(
        published(sharding="zero2")
    )
    assert offloaded == pytest.approx(12 * 7.616e9 - 4 * (8.292e9 - 7.616e9), rel=1e-3)
    assert "optimiser states (shard)" not in sizes(memory(replace(published(sharding="zero2"), offloaded=True)))


@pytest.mark.parametrize(
    ("name", "active", "token", "state"),
    [
        ("Qwen2.5-VL-7B", 7.07e9, 28 * 2 * 4 * 128, 0),
        ("Qwen3-VL-30B-A3B", 3.04e9, 48 * 2 * 4 * 128, 0),  # eight of 128 experts
        ("Qwen3.5-9B", 7.94e9, 8 * 2 * 4 * 256, 24 * (32 * 128 * 128 + 4 * 8192)),  # attention in every fourth layer
        ("gemma-3-12b", 11.77e9, 48 * 2 * 8 * 256, 0),
    ],
)
def test_published_models_by_hand(name: str, active: float, token: int, state: int) -> None:
    shape = meta_shape(name)
    assert shape.active == pytest.approx(active, rel=2e-3)
    assert (shape.decoder.token, shape.decoder.state) == (token, state)
    windows = {layer.sight.window for layer in shape.decoder.layers}
    assert windows == ({1024, None} if name.startswith("gemma") else {None})
