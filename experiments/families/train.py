"""Two updates of `RALTrainer` for every architecture that has a real processor here. Writes the column *trained* of `docs/models.md`.

    python -m experiments.families.train                       # all of them, about a minute on one core
    python -m experiments.families.train internvl --sharded    # and on two processes under FSDP2, and as an adapter

Pictures of the ring search are read by the processor of `experiments.families.processors`. In the first update the ratio to the
old policy has to be 1 and the KL to the reference 0, exactly; the second update has to start from another policy. Greedy rollouts
of the processor's prompt equal a full forward pass per token. SmolVLM's processor needs the package num2words.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from experiments.families.check import read, rollout_is_exact, write
from experiments.families.processors import PROCESSORS, model_for
from experiments.processes import Case, run
from ral.config import RALConfig
from ral.data.prompt import encode_prompt
from ral.testbed.rings import ring_records
from ral.training.trainer import RALTrainer

GROUP = 4
#: The attention layers of every decoder. Towers have projections of the same names.
ADAPTER = LoraConfig(r=4, target_modules=r".*language_model.*\.(q|k|v)_proj")


def spread(completions: Sequence[str], **columns: Any) -> list[float]:
    """Signal in every group, whatever is said."""
    return [1.0 - i / GROUP for i in range(len(completions))]


def two_updates(kind: str, folder: Path, adapter: bool = False, **changes: Any) -> list[dict[str, float]]:
    """The metrics of two updates on one batch of rollouts."""
    made = PROCESSORS[kind]()
    how: dict[str, Any] = {
        "attention_anchor": "evidence", "attention_heads": {"top": 2, "by": "evidence"}, "num_generations": GROUP,
        "per_device_train_batch_size": 2 * GROUP, "max_steps": 2, "max_completion_length": 8, "learning_rate": 1e-3,
    }  # fmt: skip
    args = RALConfig(
        str(folder), use_cpu=True, template="plain", think=False, save_strategy="no", disable_tqdm=True, **how | changes
    )
    trainer = RALTrainer(
        model_for(kind, made),
        args,
        ring_records(2, seed=0),
        reward_funcs=spread,
        processing_class=made[0],
        peft_config=ADAPTER if adapter else None,
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def faults(rows: Sequence[dict[str, float]]) -> list[str]:
    """What is wrong with two updates; nothing where they are as they should be."""
    first, second = rows
    checks = {
        "the first ratio is not 1": first["ratio"] == 1,
        "the first KL is not 0": first["kl"] == 0,
        "there is no gradient": all(math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in rows),
        "no attention was trained": first["attention/on_evidence"] > 0 and first["grad/attention_norm"] > 0,
        "the update changed nothing": second["ratio"] != 1 and second["kl"] > 0,
    }
    return [fault for fault, fine in checks.items() if not fine]


def rollouts_are_exact(kind: str) -> bool:
    made = PROCESSORS[kind]()
    (record,) = ring_records(1, seed=0)
    inputs = encode_prompt(made[0], record, think=False, template="plain")
    # transformers' own forward takes pixels in the precision of its weights.
    plain = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    return rollout_is_exact(model_for(kind, made), plain)


def sharded(kind: str, folder: Path) -> list[str]:
    """Two processes under FSDP2 against one, whole and as an adapter."""
    found = []
    for adapter in (False, True):
        case = Case("think", 2, family=kind, adapter=adapter)
        alone, expected = run(case, "ddp", 1, folder / f"alone-{adapter}")
        together, weights = run(case, "fsdp2", 2, folder / f"together-{adapter}")
        gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(alone, together, strict=True))
        apart = max(float((weights[name] - value).abs().max()) for name, value in expected.items())
        print(f"{kind}, {'LoRA' if adapter else 'whole'}: losses {gap:.1e} apart, weights {apart:.1e}", flush=True)
        found += (
            [] if gap < 1e-5 and apart < 2e-5 and together[0]["ratio"] == 1 and together[0]["kl"] == 0 else ["sharded"]
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"Of {', '.join(PROCESSORS)}.")
    parser.add_argument("--sharded", action="store_true", help="Also on two processes.")
    asked = parser.parse_args()
    lines = {line.kind: line for line in read()}
    for kind in asked.kinds or PROCESSORS:
        with tempfile.TemporaryDirectory() as folder:
            found = faults(two_updates(kind, Path(folder) / "whole"))
            found += [] if rollouts_are_exact(kind) else ["rollouts"]
            found += sharded(kind, Path(folder)) if asked.sharded else []
        print("ok " if not found else "BAD", kind, json.dumps(found), flush=True)
        lines[kind] = replace(lines[kind], trained=not found)
    write(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
