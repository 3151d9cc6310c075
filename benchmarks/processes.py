"""Throughput of two processes against one on the same batches, each pinned to a core of its own: `python -m benchmarks.processes`.

Training steps of the embedded model (rollouts, reference and two updates per batch) on one thread a process, with DDP over gloo.
One process and two run in turn. A round's first batch, in which memory is allocated, is left out of its mean.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from experiments.processes import GROUP, Case, run

from benchmarks.common import RESULTS, median_ratio, write_result

#: Longest completion in tokens, by what it makes of the processes' shares: as they are sampled, or all cut at one length.
LENGTHS = {"sampled": 16, "equal": 5}


def prompts_per_second(processes: int, prompts: int, steps: int, longest: int) -> float:
    """Prompts trained on per second and inner update by all processes together, which share the `prompts` of a step."""
    case = Case("think", steps, prompts=prompts, pinned=True, longest=longest)
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = run(case, "ddp", processes, Path(folder) / "run")
    return prompts / statistics.mean(row["step_seconds"] for row in rows[2:])


def measure(prompts: int, steps: int, rounds: int) -> dict[str, Any]:
    """Throughput of one and of two processes, round by round, as the dict that is written."""
    found: dict[str, dict[int, list[float]]] = {name: {1: [], 2: []} for name in LENGTHS}
    for _ in range(rounds):
        for name, by_processes in found.items():
            for processes, values in by_processes.items():
                values.append(prompts_per_second(processes, prompts, steps, LENGTHS[name]))
    return {
        "benchmark": "processes",
        "setting": {"prompts": prompts, "group": GROUP, "steps": steps, "rounds": rounds, "longest": LENGTHS},
        "prompts_per_second": found,
        "speedup": {name: median_ratio(by_processes[2], by_processes[1]) for name, by_processes in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32, help="Of a step, on all processes together.")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "processes.json")
    args = parser.parse_args()
    result = measure(args.prompts, args.steps, args.rounds)
    write_result(args.output, result)
    for name, speedup in result["speedup"].items():
        print(
            f"{name} lengths: two processes do {speedup:.2f} times what one does, {result['prompts_per_second'][name]}"
        )


if __name__ == "__main__":
    main()
