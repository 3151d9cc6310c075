"""Advice for a recipe that does not fit: changes to its settings, with the memory that each saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ral.plan.memory import GIB, memory
from ral.plan.setup import Setup
from ral.plan.shapes import Weights

#: The adapter that is advised.
ADAPTER = {"r": 64, "lora_alpha": 128, "target_modules": "all-linear"}
#: Bytes of AdamW's states per parameter in eight bits.
EIGHT_BITS = 2
#: Changes that save less than this share of the peak are not named.
WORTH = 0.01


@dataclass(frozen=True)
class Advice:
    """One change, made after those before it: recipe lines, GiB that it saves, and the peak in GiB after it."""

    change: str
    cost: str
    saves: float
    peak: float


def advise(setup: Setup, limit: float, adapted: Weights, quantised: Weights) -> list[Advice]:
    """The cheapest changes after which the peak is below `limit` GiB; if nothing suffices, all that save memory.

    Changes are tried in the order of what they cost: first what leaves the result as it is, then what changes the training,
    then what changes the data. Of those before the one that suffices, only what is needed beside it is kept. `adapted` and
    `quantised` are the model's weights under `ADAPTER`, on weights in 16 and in four bits.
    """
    made: list[Change] = []
    for change in _tried(setup, adapted, quantised):
        made.append(change)
        if peak_after(setup, made) <= limit:
            break
    if peak_after(setup, made) <= limit:
        for change in made[-2::-1]:
            without = [one for one in made if one is not change]
            if peak_after(setup, without) <= limit:
                made = without
    found, now = [], peak_after(setup, [])
    for number, change in enumerate(made, 1):
        after = peak_after(setup, made[:number])
        found.append(Advice(change.lines, change.cost, now - after, after))
        now = after
    return found


@dataclass(frozen=True)
class Change:
    """Recipe lines, what they cost, and the setup after them."""

    lines: str
    cost: str
    fields: dict[str, Any]


def peak_after(setup: Setup, changes: Sequence[Change]) -> float:
    """The peak in GiB after some changes, the later ones on top of the earlier."""
    merged = {name: value for change in changes for name, value in change.fields.items()}
    return memory(replace(setup, **merged)).peak / GIB


def _tried(setup: Setup, adapted: Weights, quantised: Weights) -> Iterator[Change]:
    """Changes that save memory on top of those before them, the cheapest first."""
    made: list[Change] = []
    for change in _changes(setup, adapted, quantised):
        now = peak_after(setup, made)
        if now - peak_after(setup, [*made, change]) > WORTH * now:
            made.append(change)
            yield change


def _changes(s: Setup, adapted: Weights, quantised: Weights) -> Iterator[Change]:
    if not s.checkpointing:
        yield Change("activation_checkpointing: true", "one more forward per update", {"checkpointing": True})
    if s.prompts > 1:
        accumulated = s.accumulation * s.prompts
        lines = f"per_device_train_batch_size: {s.group}, gradient_accumulation_steps: {accumulated}"
        yield Change(lines, "none in the result; smaller passes", {"prompts": 1, "accumulation": accumulated})
    if s.gpus > 1 and s.sharding == "ddp" and s.weights.method != "adapter on 4 bits":
        lines = "fsdp: true, fsdp_config: {version: 2, reshard_after_forward: false}"
        yield Change(lines, "communication", {"sharding": "fsdp2", "gathered": True})
    if s.sampled > 1 and s.sampler == "own":
        yield Change(f"rollout_rows: {s.group}", "slower rollouts", {"rollout_rows": s.group})
    if s.gpus > 1 and not s.gives_back and s.weights.method != "adapter on 4 bits":
        lines = "fsdp: true, fsdp_config: {version: 2, reshard_after_forward: true}"
        cost = "every layer of every pass, and of every decoding step, is gathered"
        yield Change(lines, cost, {"sharding": "fsdp2", "gathered": False})
    if s.norm_steps:
        yield Change("gradient_norm_steps: 0", "the ratio of the two gradients is not logged", {"norm_steps": 0})
    if s.optimiser > EIGHT_BITS:
        yield Change("optim: adamw_torch_8bit", "states of the optimiser in eight bits", {"optimiser": EIGHT_BITS})
    if s.weights.method == "full":
        frozen = {"weights": adapted, "reference": False}
        yield Change(f"peft: {_flow(ADAPTER)}", "an adapter in place of all weights", frozen)
    if s.weights.method != "adapter on 4 bits":
        four = {"weights": quantised, "reference": False, "sharding": "ddp"}
        lines = "quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: bfloat16}"
        beside = "" if s.weights.method == "adapter" else f", peft: {_flow(ADAPTER)}"
        yield Change(lines + beside, "an adapter on weights in four bits, without sharding", four)
    if s.completion > 256:
        half = s.completion // 2
        yield Change(f"max_completion_length: {half}", "longer completions are cut", {"completion": half})
    if s.visual > 256:
        fewer = {"prompt": s.prompt - s.visual // 2, "visual": s.visual - s.visual // 2}
        yield Change("half of max_pixels or of num_frames", "less to see", fewer)
    if s.group > 4:
        yield Change(f"num_generations: {s.group // 2}", "noisier advantages", {"group": s.group // 2})


def _flow(mapping: dict[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"
