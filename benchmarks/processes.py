"""Throughput of two processes against one, each pinned to a core of its own: `python -m benchmarks.processes`.

Training steps of the embedded model (rollouts, reference and two updates per batch) on the same number of prompts for every
process, as data-parallel training is scaled. One process and two run in turn. A round's first batch, in which memory is
allocated, is left out of its mean.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from experiments.processes import GROUP, Case, run

from benchmarks.common import RESULTS, median_ratio, write_result


def prompts_per_second(processes: int, prompts: int, steps: int) -> float:
    """Prompts trained on per second and inner update by all processes, each of which takes `prompts` a step."""
    case = Case("think", steps, prompts=prompts * processes, pinned=True)
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = run(case, "ddp", processes, Path(folder) / "run")
    return case.prompts / statistics.mean(row["step_seconds"] for row in rows[2:])


def measure(prompts: int, steps: int, rounds: int) -> dict[str, Any]:
    """Throughput of one and of two processes, round by round, as the dict that is written."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, values in found.items():
            values.append(prompts_per_second(processes, prompts, steps))
    return {
        "setting": {"prompts_per_process": prompts, "group": GROUP, "steps": steps, "rounds": rounds},
        "prompts_per_second": {str(processes): values for processes, values in found.items()},
        "speedup": median_ratio(found[2], found[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16, help="Per process and step.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "processes.json")
    args = parser.parse_args()
    result = measure(args.prompts, args.steps, args.rounds)
    write_result(args.output, result)
    print(f"two processes do {result['speedup']:.2f} times what one does: {result['prompts_per_second']} prompts/s")


if __name__ == "__main__":
    main()
