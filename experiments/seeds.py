"""The quickstart's comparison over several seeds, with its control: `python experiments/seeds.py --seeds 0 1 2`.

Every arm of `ral quickstart` and one control (the same exploration without the attention term) is trained from the shipped
start checkpoint with every seed, two at a time on one core each, and evaluated on the same 512 held-out images. Runs that are
complete are not repeated. The figures go to `experiments/results/seeds.json`, from which the tables are made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ral.evaluate.statistics import seed_interval
from ral.files import atomic_write_text
from ral.runs import machine_class, source_commit
from ral.testbed.quickstart import ARMS, SETTINGS, START, Arm, run_arm, run_start

CONTROL = Arm("explore-bias", "Exploration only (control)", {"attention_coef": 0.0, "attention_anchor": "explore"})
RESULTS = Path(__file__).parent / "results" / "seeds.json"
FIGURES = ("accuracy", "pointing", "mass", "visual_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=SETTINGS["max_steps"])
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"), help="Where the runs are kept.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    runs = [(seed, arm) for seed in args.seeds for arm in (*ARMS, CONTROL)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = []
        if not (args.output / START.name / "eval/rings/summary.json").exists():
            jobs.append(pool.submit(run_start, args.output, args.held_out, 1))
        for seed, arm in runs:
            folder = args.output / f"seed-{seed}"
            if not (folder / arm.name / "eval/rings/summary.json").exists():
                jobs.append(pool.submit(run_arm, arm, folder, seed, args.steps, args.held_out, 1))
        for job in jobs:
            job.result()
    results = {
        "command": f"python experiments/seeds.py --seeds {' '.join(map(str, args.seeds))} --steps {args.steps}",
        "machine": machine_class(),
        "commit": source_commit(),
        "settings": SETTINGS,
        "start": figures(args.output / START.name),
        "runs": [{"seed": s, "arm": a.name, **figures(args.output / f"seed-{s}" / a.name)} for s, a in runs],
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(args.results, json.dumps(results, indent=1) + "\n")
    print(table(results))


def figures(folder: Path) -> dict[str, float]:
    """What is compared, from one run's evaluation."""
    summary = json.loads((folder / "eval/rings/summary.json").read_text(encoding="utf-8"))
    looking = summary["grounding"]
    return {name: summary[name] if name == "accuracy" else looking[name] for name in FIGURES}


def table(results: dict) -> str:
    """Markdown: per arm the mean over seeds with its 95 % t-interval, and the paired difference to GRPO."""
    arms = list(dict.fromkeys(run["arm"] for run in results["runs"]))
    values = {arm: {f: [r[f] for r in results["runs"] if r["arm"] == arm] for f in FIGURES} for arm in arms}
    lines = ["| arm | accuracy % | difference to GRPO | pointing game | mass in box | visual share | seeds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    start = results["start"]
    cells = [f"{start[f]:.2f}" for f in FIGURES[1:]]
    lines.append(f"| start | {100 * start['accuracy']:.1f} | | {' | '.join(cells)} | |")
    for arm in arms:
        accuracy = np.array(values[arm]["accuracy"])
        paired = 100 * (accuracy - np.array(values["grpo"]["accuracy"]))
        difference = "" if arm == "grpo" else f"{seed_interval(paired):.1f}"
        cells = [f"{np.mean(values[arm][f]):.2f}" for f in FIGURES[1:]]
        seeds = ", ".join(f"{100 * a:.1f}" for a in accuracy)
        lines.append(f"| {arm} | {seed_interval(100 * accuracy):.1f} | {difference} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
