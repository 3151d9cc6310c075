"""Measures everything: `python -m benchmarks.suite [--set quick|targets|full] [--only TEXT]`.

Every cell of the suite becomes one JSON file in `--output`; a cell whose file is there already is not measured again, so a
suite that was cut off goes on where it stopped. `python -m benchmarks.page` makes the page and its figure from the files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks import data_loading, evaluation, rollout, training_step, update_step
from benchmarks.cases import Setting
from benchmarks.common import Arm, compare, in_fresh_process, write_result
from ral.quickstart import run_quickstart

BUILDS: dict[str, Callable[[Any, str], Arm]] = {
    "update_step": update_step.build,
    "rollout": rollout.build,
    "training_step": training_step.build,
    "evaluation": evaluation.build,
    "data_loading": data_loading.build,
}
Set = Literal["quick", "targets", "full"]


@dataclass(frozen=True)
class Cell:
    """One measurement: which benchmark, on what sizes, in which ways, in how many rounds."""

    benchmark: str
    setting: Setting
    arms: tuple[str, ...]
    repeats: int = 5
    sets: tuple[Set, ...] = ("full",)

    @property
    def name(self) -> str:
        s = self.setting
        seen = f"v{s.frames}" if s.frames else f"{s.images}"
        tokens = f"R{s.completion_tokens}-G{s.group}-N{s.prompts}" + ("" if s.think else "-direct")
        return f"{self.benchmark}-{seen}x{s.image_size}-{tokens}-L{s.layers}x{s.hidden}"

    def measure(self, threads: int) -> dict[str, Any]:
        result = compare(BUILDS[self.benchmark], self.setting, self.arms, repeats=self.repeats, threads=threads)
        return {"benchmark": self.benchmark, "setting": asdict(self.setting), **result}


def _update(arms: tuple[str, ...], repeats: int = 5, sets: tuple[Set, ...] = ("full",), **sizes: int) -> Cell:
    return Cell("update_step", Setting(**sizes), arms, repeats, sets)


OURS, ATTENTION, TRL, PREFIX, EAGER = "ours", "ours+attention", "trl", "prefix-grouper", "eager+attention"
LARGE = {"layers": 12, "hidden": 512}  # 47M parameters
TARGETS: tuple[Set, ...] = ("targets", "full")
ALL: tuple[Set, ...] = ("quick", "targets", "full")

CELLS = (
    # the update: completion length, the larger model, the attention term's share, prompt length, group size, model size
    _update((OURS, ATTENTION, "ours+attention+vision", TRL, PREFIX, EAGER), 7, ALL, completion_tokens=16),
    _update((OURS, ATTENTION, TRL, PREFIX, EAGER), 7, TARGETS, completion_tokens=64),
    _update((OURS, ATTENTION, TRL), 7, TARGETS, completion_tokens=256),
    _update((OURS, ATTENTION, TRL), 3, completion_tokens=1024),
    _update((OURS, ATTENTION, TRL), 5, completion_tokens=8),
    _update((ATTENTION, TRL), 2, TARGETS, completion_tokens=16, **LARGE),
    _update((ATTENTION, TRL), 2, TARGETS, completion_tokens=64, **LARGE),
    _update((OURS, ATTENTION), 9, TARGETS, completion_tokens=64, layers=12),
    _update((OURS, ATTENTION), 5, TARGETS, images=4, image_size=248, completion_tokens=64, layers=12),
    _update((ATTENTION, TRL), 2, TARGETS, images=4, image_size=248, completion_tokens=16),
    *(_update((ATTENTION,), 3, TARGETS, images=n, image_size=256) for n in (1, 4, 16)),
    *(_update((ATTENTION,), 3, images=n, image_size=256) for n in (2, 8)),
    _update((OURS, ATTENTION, TRL), 5, ("quick", "full"), image_size=128),
    *(_update((OURS, ATTENTION, TRL), 3, group=n) for n in (2, 32)),
    _update((OURS, ATTENTION), 2, layers=10, hidden=1024),
    _update((OURS, ATTENTION), 5, image_size=128, frames=8),
    # rollouts
    Cell("rollout", Setting(completion_tokens=48), ("ours", "generate"), 5, ALL),
    Cell("rollout", Setting(completion_tokens=8), ("ours", "generate"), 5),
    Cell("rollout", Setting(completion_tokens=48, prompts=4), ("ours", "generate"), 3),
    Cell("rollout", Setting(completion_tokens=48, layers=12), ("ours", "generate"), 3, TARGETS),
    # whole steps: with thinking, and RAL-zero
    Cell("training_step", Setting(completion_tokens=48, prompts=2), ("ours", "ours-grpo", "trl"), 2, TARGETS),
    Cell("training_step", Setting(completion_tokens=8, prompts=2, think=False), ("ours", "ours-grpo", "trl"), 2, TARGETS),
    Cell("training_step", Setting(image_size=64, completion_tokens=16, prompts=2), ("ours", "trl"), 2, ("quick",)),
    Cell("training_step", Setting(image_size=128, frames=8, prompts=2), ("ours", "ours-grpo"), 3),
    # answers and data
    Cell("evaluation", Setting(image_size=128, prompts=16), ("ours", "generate"), 5, ("quick", "full")),
    Cell("data_loading", Setting(prompts=16), ("ours", "ours+threads", "ours+workers"), 5, ("quick", "full")),
    Cell("data_loading", Setting(image_size=128, frames=16, prompts=16), ("ours", "ours+threads", "ours+workers"), 5),
)  # fmt: skip


def quickstart() -> dict[str, Any]:
    """Seconds of `ral quickstart` from its start to its report, `whole`, and of the training of each arm."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run_quickstart(Path(folder) / "quickstart")
        whole = time.perf_counter() - started
        description = (Path(folder) / "quickstart" / "quickstart.json").read_text(encoding="utf-8")
    return {"benchmark": "quickstart", "seconds": json.loads(description)["seconds"], "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=get_args(Set), default="full", help="quick takes five minutes; default: full")
    parser.add_argument("--only", default="", help="cells with this text in their name")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        # each in a process of its own: what a cell's processes start from must not be the peak of the cell before
        cell.name: partial(in_fresh_process, cell.measure, args.threads)
        for cell in CELLS
        if args.set in cell.sets
    }
    if args.set != "quick":
        jobs["quickstart"] = quickstart
    for name, measure in jobs.items():
        path = args.output / f"{name}.json"
        if args.only not in name or path.exists():
            continue
        started = time.perf_counter()
        result = measure()
        write_result(path, result)
        print(f"{name} ({time.perf_counter() - started:.0f} s)")
        for arm, seconds in result["seconds"].items():
            print(f"  {arm:24}{seconds:9.3f} s")


if __name__ == "__main__":
    main()
