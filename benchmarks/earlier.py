"""The whole step, its rollouts and an evaluation, now and at an earlier commit, in turn: `python -m benchmarks.earlier`.

The earlier commit's source comes from git, into a folder that is removed afterwards. Times are a process's CPU seconds, which other
processes on the machine change little; names in `_clock` are wall-clock. `benchmarks/earlier_arm.py` describes the work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.committed import unpack_commit

from benchmarks.common import RESULTS, median_ratio, write_result

ROOT = Path(__file__).parents[1]
#: The last commit that sampled the prompts of each micro-batch by themselves.
BEFORE = "d7b1e3f"


class Arm:
    """A process that does the work with one source."""

    def __init__(self, source: Path, sizes: list[int]):
        paths = os.pathsep.join((str(source / "src"), str(source)))
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "earlier_arm.py"), *map(str, sizes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=source,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        self._next("READY")

    def once(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return json.loads(self._next("SECONDS "))  # type: ignore[no-any-return]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _next(self, word: str) -> str:
        """The rest of the next line that begins with `word`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        raise RuntimeError(f"an arm ended with status {self.process.wait()}; run benchmarks/earlier_arm.py by itself")


def measure(commit: str, rounds: int, sizes: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        unpack_commit(ROOT, commit, Path(folder))
        arms = {"before": Arm(Path(folder), sizes), "now": Arm(ROOT, sizes)}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, arm in arms.items():
                found[name].append(arm.once())
        for arm in arms.values():
            arm.end()
    names = found["now"][0]
    seconds = {arm: {name: [one[name] for one in ones] for name in names} for arm, ones in found.items()}
    return {
        "benchmark": "earlier",
        "before": commit,
        "threads": sizes[0],
        "rounds": rounds,
        "seconds": {arm: {name: statistics.median(all_) for name, all_ in of.items()} for arm, of in seconds.items()},
        "ratio": {name: median_ratio(seconds["before"][name], seconds["now"][name]) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default=BEFORE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--output", type=Path, default=RESULTS / "earlier.json")
    args = parser.parse_args()
    result = measure(args.commit, args.rounds, [args.threads, args.prompts, args.tokens, args.records])
    write_result(args.output, result)
    for name, ratio in result["ratio"].items():
        times = " → ".join(f"{result['seconds'][arm][name]:.2f} s" for arm in ("before", "now"))
        print(f"{name:12} {times}: {ratio:.2f} ×")


if __name__ == "__main__":
    main()
