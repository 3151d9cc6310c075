"""The update of text models of several families: the prompt shared by all completions, against a copy of it for each.

    python -m benchmarks.families

Each model has four layers of width 256 and runs a forward and backward pass of one group with P = 1,000, G = 8 and R = 32, in
float32 on one thread. A packed pass has P + GR tokens, a repeated one G(P + R): the ratio of times is compared with the ratio of
tokens, 6.6. Seconds are processor time, in turn for both ways, which another process on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.common import RESULTS, in_fresh_process, peak_over, write_result
from ral.attention import forward_group
from ral.attention.models import make_capturable, repeat_prompts

P, G, R = 1000, 8, 32
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 2000, "initializer_range": 0.05, "max_position_embeddings": 4096, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
#: What is special about each model.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"sliding_window": 128, "query_pre_attn_scalar": 32, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "qwen3_5_text": {
        "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4], "partial_rotary_factor": 1.0,
        },
    },
    "qwen3_moe": {"moe_intermediate_size": 128, "num_experts": 16, "num_experts_per_tok": 4},
}  # fmt: skip


def update(kind: str, repeated: bool) -> Callable[[], None]:
    """The forward and backward pass of one group."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | MODELS[kind])
    model: PreTrainedModel = make_capturable(AutoModelForCausalLM.from_config(config)).train()
    if repeated:
        repeat_prompts(model)
    inputs = {"input_ids": torch.randint(2, 2000, (1, P))}
    ys = list(torch.randint(2, 2000, (G, R)))

    def step() -> None:
        model.zero_grad()
        found = forward_group(model, inputs, ys)
        (found.logps.sum() + found.attention.square().sum()).backward()

    return step


def peak(kind: str, repeated: bool) -> float:
    """GiB of an update, in a process of its own."""
    torch.set_num_threads(1)
    step = update(kind, repeated)
    return peak_over(lambda: [step() for _ in range(3)])


def measure(kind: str, rounds: int, gib: dict[str, float]) -> dict[str, Any]:
    """Seconds of both ways in turn; `gib` are their peaks."""
    ways = {"packed": update(kind, False), "repeated": update(kind, True)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, step in ways.items():
            start = time.process_time()
            step()
            if number:  # the first of each warms up
                seconds[name].append(time.process_time() - start)
    ratio = float(np.median(np.divide(seconds["repeated"], seconds["packed"])))
    tokens = G * (P + R) / (P + G * R)
    return {
        "model": kind, "seconds": seconds, "ratio": ratio, "tokens": tokens, "share": ratio / tokens, "gib": gib,
        "memory_ratio": gib["repeated"] / gib["packed"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "families.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Before this process grows, as those that it starts inherit its peak.
    peaks = {
        kind: {name: in_fresh_process(peak, kind, name == "repeated") for name in ("packed", "repeated")}
        for kind in MODELS
    }
    results = []
    for kind in MODELS:
        results.append(found := measure(kind, args.rounds, peaks[kind]))
        print(
            f"{kind:14} repeated / packed: time {found['ratio']:.2f} ({found['share']:.0%} of {found['tokens']:.2f}), "
            f"memory {found['memory_ratio']:.2f} ({found['gib']['repeated']:.3f} / {found['gib']['packed']:.3f} GiB)",
            flush=True,
        )
    write_result(args.output, {"P": P, "G": G, "R": R, "models": results})


if __name__ == "__main__":
    main()
