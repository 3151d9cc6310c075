"""The update and the rollout of a Qwen2.5-VL against an older commit, in turn.

    git worktree add /tmp/older d7b1e3f
    python -m benchmarks.against /tmp/older/src

Two processes hold the same model, one with each version of the package. They take turns: an update of one group (an image, P = 256,
G = 8, R = 64), then a rollout of it. Processor seconds count, of which another process on the machine takes least; the ratio is
the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

G, R, SIDE = 8, 64, 30


def serve() -> None:
    """A worker: for every line that it reads, the seconds of an update and of a rollout."""
    from ral.rollout import Sampling, sample
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from ral.attention import forward_group, prepare_prompt

    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": 2048, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 256, "patch_size": 4,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    tokens = {
        "image_token_id": 2000,
        "video_token_id": 2001,
        "vision_start_token_id": 2002,
        "vision_end_token_id": 2003,
    }
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    ids = torch.tensor([[*range(15), 2002, *[2000] * (SIDE // 2) ** 2, 2003, *range(15)]])
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == 2000).int(),
        "pixel_values": torch.randn(SIDE**2, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, SIDE, SIDE]]),
    }  # fmt: skip
    ys = list(torch.randint(0, 1900, (G, R)))
    prompt, sampling = prepare_prompt(model, inputs), Sampling(R, (2047,))

    def update() -> None:
        model.zero_grad()
        found = forward_group(model, inputs, ys)
        (found.logps.sum() + found.attention.square().sum()).backward()

    for line in sys.stdin:
        seconds = []
        for step in (update, lambda: sample(model, [prompt], G, sampling)):
            start = time.process_time()
            step()
            seconds.append(time.process_time() - start)
        print(line.strip(), *seconds, flush=True)


def main() -> None:
    from benchmarks.common import (  # the older version need not have what these import
        RESULTS,
        median_ratio,
        write_result,
    )

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path, help="src of a checkout of the older commit")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "against.json")
    args = parser.parse_args()
    here = Path(__file__).parents[1]
    workers = {}
    for name, source in {"older": args.older, "now": here / "src"}.items():
        path = {**os.environ, "PYTHONPATH": f"{source}:{here}"}
        command = [sys.executable, "-c", "from benchmarks.against import serve; serve()"]
        workers[name] = subprocess.Popen(command, env=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in workers} for what in ("update", "rollout")
    }
    for number in range(args.rounds + 1):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            print(f"round {number}", file=worker.stdin, flush=True)
            answer = worker.stdout.readline().split()[-2:]
            if number:  # the first warms up
                for what, value in zip(seconds, answer, strict=True):
                    seconds[what][name].append(float(value))
    for worker in workers.values():
        worker.communicate()
    ratios = {what: median_ratio(found["now"], found["older"]) for what, found in seconds.items()}
    spread = {what: float(np.std(np.divide(f["now"], f["older"])) / args.rounds**0.5) for what, f in seconds.items()}
    for what, ratio in ratios.items():
        print(f"{what}: now / older {ratio:.3f} ± {spread[what]:.3f}", flush=True)
    write_result(args.output, {"seconds": seconds, "ratios": ratios, "standard_errors": spread})


if __name__ == "__main__":
    main()
