"""Advice for a recipe that does not fit: changes to its settings, with the memory that each saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ral.plan.memory import GIB, memory
from ral.plan.setup import Setup
from ral.plan.shapes import Weights

#: The adapter that is advised.
ADAPTER = {"r": 64, "lora_alpha": 128, "target_modules": "all-linear"}
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
    """Changes in the order to make them, until the peak is below `limit` GiB or nothing is left to change.

    First what leaves the result as it is, then what changes the training, then what changes the data. `adapted` and
    `quantised` are the model's weights under `ADAPTER`, on weights in 16 and in four bits.
    """
    found: list[Advice] = []
    now = memory(setup).peak / GIB
    for name, cost, changed in _changes(setup, adapted, quantised):
        if now <= limit:
            break
        combined = replace(setup, **changed)
        after = memory(combined).peak / GIB
        if now - after > WORTH * now:
            found.append(Advice(name, cost, now - after, after))
            setup, now = combined, after
    return found


def _changes(s: Setup, adapted: Weights, quantised: Weights) -> Iterator[tuple[str, str, dict]]:
    """(recipe lines, what they cost, fields of the setup that they change), the cheapest first."""
    if not s.checkpointing:
        yield "activation_checkpointing: true", "one more forward per update", {"checkpointing": True}
    if s.prompts > 1:
        fewer = {"prompts": 1, "accumulation": s.accumulation * s.prompts}
        lines = f"per_device_train_batch_size: {s.group}, gradient_accumulation_steps: {fewer['accumulation']}"
        yield lines, "none in the result; smaller passes", fewer
    if s.gpus > 1 and s.sharding == "ddp" and s.weights.method != "adapter on 4 bits":
        lines = "fsdp: true, fsdp_config: {version: 2, reshard_after_forward: false}"
        yield lines, "communication", {"sharding": "fsdp2", "gathered": True}
    if s.sampled > 1:
        yield f"rollout_rows: {s.group}", "slower rollouts", {"rollout_rows": s.group}
    if s.norm_steps:
        yield "gradient_norm_steps: 0", "the ratio of the two gradients is not logged", {"norm_steps": 0}
    if s.weights.method == "full":
        frozen = {"weights": adapted, "reference": False}
        yield f"peft: {_flow(ADAPTER)}", "an adapter in place of all weights", frozen
    if s.weights.method != "adapter on 4 bits":
        four = {"weights": quantised, "reference": False, "sharding": "ddp"}
        lines = "quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: bfloat16}"
        yield lines, "an adapter on weights in four bits, without sharding", four
    if s.completion > 256:
        yield (
            f"max_completion_length: {s.completion // 2}",
            "longer completions are cut",
            {"completion": s.completion // 2},
        )
    if s.visual > 256:
        fewer = {"prompt": s.prompt - s.visual // 2, "visual": s.visual - s.visual // 2}
        yield "half of max_pixels or of num_frames", "less to see", fewer
    if s.group > 4:
        yield f"num_generations: {s.group // 2}", "noisier advantages", {"group": s.group // 2}


def _flow(mapping: dict[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"
