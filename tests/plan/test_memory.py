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
    taught = {"teacher": meta_shape("Qwen2.5-VL-7B")}
    for changes, share in (
        ({}, 1 / 8), (taught, 2 / 8), ({"sharding": "ddp"}, 3), ({"sharding": "ddp", "accumulation": 1}, 2),
    ):  # fmt: skip
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
    row = 16 * 4 * 8 * 1024 * (1280 + 1024)  # prompts of a rollout batch, float32, G, R, P + R
    assert kept[1, False] - kept[0, False] == row
    assert kept[2, False] - kept[0, False] == 2 * row
    assert kept[1, True] - kept[1, False] == row


def test_a_rollout_batch_of_several_parts_is_kept_whole() -> None:
    """By hand: 1,176 values a visual token, features of 3,584 numbers in 16 bits, old rows in 32; three parts of 16 prompts."""
    prompt = 4 * 1024 * 1176 * 4 + 2 * 1024 * 3584 + 4 * 8 * 1024 * (1280 + 1024)
    for parts in (1, 3):
        found = memory(published(parts=parts, rollout_rows=8))
        assert in_phase(found, "update")["prompts and rollouts of the step"] == 16 * parts * prompt
        assert (
            in_phase(found, "rollouts")["key/value cache"]
            == in_phase(memory(published(rollout_rows=8)), "rollouts")["key/value cache"]
        )
    # All of them are sampled at once if the rows are not bounded, and their old pass is made before the updates.
    assert published(parts=3).sampled == 48
    alone = published(parts=3, reference=False, reference_pass=False)
    assert "a pass without gradient" in in_phase(memory(alone), "passes")
    assert "a pass without gradient" not in in_phase(memory(replace(alone, parts=1)), "passes")


def test_fewer_heads_take_fewer_queries_and_a_key_each() -> None:
    """By hand, of 8 · 1,024 tokens behind 1,280: 28 queries and 4 keys of 128 numbers in all, 4 and 4 of four heads; each of four
    bytes, with a gradient of the same size.
    """
    written, every = 8 * 1024, 8 * 1024 + 1280
    pass_of = {
        heads: in_phase(memory(published(heads=heads)), "passes")["a pass without gradient"] for heads in (None, 4, 28)
    }
    assert pass_of[None] - pass_of[4] == 2 * 4 * 128 * (28 - 4) * written
    assert pass_of[28] - pass_of[None] == 2 * 4 * 128 * (28 - 4) * every


def test_chunks_of_logits_each_make_a_gradient_of_the_whole_output_embedding() -> None:
    """By hand, of 7B in 16 bits: four chunks of 441 tokens in 32 bits, three tensors of rows and two chunks of them, query and key of the
    captured layer with gradients, and twice 152,064 · 3,584 numbers. Where it is not trained, there are none of these.
    """
    name = "backward of a block, logits, attention rows"
    logits = 4 * 4 * 441 * 152064
    rows = 3 * 4 * 8 * 1024 * (1280 + 1024) + 2 * 4 * 2**19 + 2 * 4 * 128 * (28 * 8192 + 4 * (8192 + 1280))
    setup = published(norm_steps=10)
    assert sizes(memory(setup))[name] == logits + rows + 2 * 2 * 152064 * 3584
    # Under DDP they are of 32 bits; what holds them after that is among the gradients.
    assert sizes(memory(replace(setup, sharding="ddp")))[name] == logits + rows + 2 * 4 * 152064 * 3584
    adapter = LoraConfig(r=64, target_modules="all-linear", exclude_modules=".*visual.*")
    adapted = replace(setup, weights=weights_of(meta_model("Qwen2.5-VL-7B")[0], adapter, four_bits=False))
    assert sizes(memory(adapted))[name] < logits + rows + 2 * 152064 * 3584


def test_the_check_of_the_first_prompt_comes_before_there_are_states_of_an_optimiser() -> None:
    """By hand: its own logits of 1,288 tokens, in 16 bits and widened to 32, are more than two copies of a prompt of 7B."""
    found = memory(published(), libraries=False)
    logits = (2 + 4) * 1288 * 152064
    layer = 1288 * (2 * 3 * 18944 + 4 * 3584 * 2)
    assert in_phase(found, "check")["two completions behind copies of a prompt; its logits"] == logits + layer
    assert "optimiser states (shard)" not in in_phase(found, "check")
    # In 32 bits and with few words in the vocabulary the masks of both copies are the most: a byte and four, P + 8 squared.
    model = tiny_model("llama")
    small = setup_for(model, weights_of(model, None, four_bits=False), prompt=3000)
    copies = 2 * 3008**2 * 5
    assert 1 < in_phase(memory(small), "check")["two completions behind copies of a prompt; its logits"] / copies < 1.1


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


def test_deepspeed_offloads_states_weights_and_gradients_of_32_bits() -> None:
    """DeepSpeed's own estimate (`estimate_zero2_model_states_mem_needs`): with an optimiser on the host a GPU holds two bytes a
    parameter, and the host 16 (Adam's 8, the weight's and the gradient's 4 each) before its buffers.
    """
    here, there = (replace(published(sharding="zero2", reference=False), offloaded=on) for on in (False, True))
    # By hand: 8.292 billion weights, of which 7.616 are trained; what is saved is gathered beside what is offloaded.
    assert host_memory(there) - host_memory(here) == pytest.approx(16 * 7.616e9 - 4 * (8.292e9 - 7.616e9), rel=1e-3)
    items = sizes(memory(there))
    assert not {"optimiser states (shard)", "trained weights, 32 bits (shard)"} & items.keys()
    assert items["weights, 16 bits"] == pytest.approx(2 * 8.292e9, rel=1e-3)
    assert items["gradients"] == 2 * 5e8  # the bucket on its way


def test_fsdp_offloads_all_shards() -> None:
    """By hand, of 7B on 8 GPUs, each process: weights 8.292 · 4 / 8, states 7.616 · 8 / 8, gradients and the measured term's 7.616 · 4 / 8
    each, the reference 8.292 · 2 / 8 billion bytes. They leave the GPU, and the host of eight processes holds them.
    """
    here = published(gathered=False, norm_steps=10)
    there = replace(here, offloaded=True, offloaded_weights=True)
    billions = 4.146 + 7.616 + 2 * 3.808 + 2.073
    assert memory(here, libraries=False).total("update") - memory(there, libraries=False).total(
        "update"
    ) == pytest.approx(1e9 * billions, rel=1e-3)
    # Without offloading the most is there while the weights are read by eight processes at once.
    one = replace(here, loads=1), replace(there, loads=1)
    assert host_memory(one[1]) - host_memory(one[0]) == pytest.approx(
        8e9 * billions + 4 * (7.616e9 - 8.292e9), rel=1e-3
    )


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


@pytest.mark.parametrize(
    ("size", "layers", "hidden", "gated", "keys", "seeing", "billions"),
    [("7B", 28, 3584, 18944, 512, 3420, 8.292), ("72B", 80, 8192, 29568, 1024, 3456, 73.41)],
)
def test_a_few_lines_of_arithmetic_say_the_same_of_published_sizes(
    size: str, layers: int, hidden: int, gated: int, keys: int, seeing: int, billions: float
) -> None:
    """Independent of the planner: parameters from config.json's numbers, and 16 bytes for each that is trained (ZeRO, arXiv 1910.02054,
    section 3.1, with weights in 32 bits alone: 4 of the weight, 4 of its gradient, 8 of Adam's states).
    """
    attention = 2 * hidden * hidden + 2 * hidden * keys + hidden + 2 * keys
    decoder = layers * (attention + 3 * hidden * gated + 2 * hidden) + 2 * 152064 * hidden + hidden
    # Tower of 32 layers, 1280 wide, with gated units, and a merger of four patches.
    tower = 32 * (4 * 1280**2 + 4 * 1280 + 3 * 1280 * seeing + 2 * seeing + 1280 + 2 * 1280) + 1176 * 1280
    tower += 1280 + 5120 * (5120 + 1) + hidden * (5120 + 1)
    setup = published(size, norm_steps=0)
    assert setup.weights.trained == pytest.approx(decoder, rel=1e-6)
    assert setup.model.parameters == pytest.approx(decoder + tower, rel=1e-5)
    assert decoder + tower == pytest.approx(billions * 1e9, rel=1e-3)
    items = sizes(memory(setup))
    states = items["weights (shard)"] + items["optimiser states (shard)"] + items["gradients"]
    assert states == pytest.approx((16 * decoder + 4 * tower) / 8, rel=1e-5)
