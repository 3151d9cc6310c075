"""What the looks along training cost the quickstart: `python -m benchmarks.looks`.

Trains the GRPO arm of `ral quickstart` with its looks, and takes the share of processor time that goes into them: what else
the machine does has no part in that. The result goes to `benchmarks/results/looks.json`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from benchmarks.common import RESULTS, write_result
from ral.evaluate.look_recorder import LookRecorder
from ral.quickstart import arm_recipe
from ral.testbed import load_start
from ral.training.launch import datasets
from ral.training.trainer import RALTrainer


class TimedLooks(LookRecorder):
    """Counts the processor time of every call."""

    seconds: list[float]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seconds = []

    def _take(self, *args: Any, **kwargs: Any) -> None:
        start = time.process_time()
        super()._take(*args, **kwargs)
        self.seconds.append(time.process_time() - start)


def measure(steps: int, seed: int) -> dict[str, Any]:
    """Processor seconds of a look and of a step without, and the looks' share at the quickstart's interval."""
    torch.set_num_threads(1)
    model, processor = load_start()
    with tempfile.TemporaryDirectory() as folder:
        recipe = arm_recipe("grpo", Path(folder), seed, steps)
        records, looked_at = datasets(recipe)
        looks = TimedLooks((looked_at or [])[: recipe.look_items], 4)
        trainer = RALTrainer(model, recipe.args, records, processing_class=processor, callbacks=[looks])
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        trainer.train()
        total = time.process_time() - start
    look, step = statistics.median(looks.seconds), (total - sum(looks.seconds)) / steps
    return {
        "look_seconds": look,
        "step_seconds": step,
        "share": look / (recipe.look_steps * step),
        "items": recipe.look_items,
        "every": recipe.look_steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = measure(args.steps, args.seed)
    setting = {
        "steps": args.steps,
        "seed": args.seed,
        "items": found.pop("items"),
        "every": found.pop("every"),
        "threads": 1,
    }
    write_result(RESULTS / "looks.json", {"setting": setting, **found})
    print(
        f"a look takes {found['look_seconds']:.2f} s, {100 * found['share']:.1f} % of training with one every {setting['every']} steps"
    )


if __name__ == "__main__":
    main()
