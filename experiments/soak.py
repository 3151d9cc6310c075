"""Hours of training under faults: `python -m experiments.soak --hours 2`.

One run of the testbed after the other, each disturbed by random kills, a disk that is full for a while, and damaged
checkpoints, and each held bit for bit against a run that was left alone. Memory, open files and throughput of the training process
are sampled every second. The figures go to `experiments/results/soak.json` after every attempt, with the commit that ran; a further
call adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.killing import Attempt, Case, broken_files, flip_bit, result

from ral.files import atomic_write_text, read_jsonl
from ral.runs.checkpoints import checkpoints, fault
from ral.runs.folder import machine_class, source_commit

RESULTS = Path(__file__).parent / "results" / "soak.json"

CASE = Case("soak", 1, {"attention_anchor": "explore", "max_steps": 240, "save_steps": 6, "save_total_limit": 3})

#: Seconds that an attempt is left alone before a fault, at least and at most.
UNDISTURBED = (8.0, 60.0)
#: Steps at the beginning of an attempt that are left out of its growth: the allocator's first high water.
WARM_UP = 20
#: Stands for the commit of attempts that were made before it was written down, or outside of git.
NOT_RECORDED = "before it was recorded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="to add")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="where the runs are kept")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"attempts": [], "ends": []}
    found |= {"machine": machine_class(), "seed": args.seed}
    commit = source_commit()
    recipe, whole = CASE.write(args.output), args.output / "whole"
    while not (whole / "final").exists():
        if any(Attempt(recipe, whole).wait(seconds=3600)):
            raise RuntimeError(f"the undisturbed run failed; see {whole}.log")
    end = time.monotonic() + 3600 * args.hours
    while time.monotonic() < end:
        rng = random.Random(f"{args.seed}/{len(found['attempts'])}")
        found["attempts"].append({"commit": commit, **disturb(recipe, args.output / "run", rng)})
        if (args.output / "run" / "final").exists():
            same = result(args.output / "run") == result(whole)
            steps = [row["step"] for row in read_jsonl(args.output / "run" / "metrics.jsonl")]
            lost = sorted(set(range(1, CASE.changes["max_steps"] + 1)) - set(steps))
            found["ends"].append(
                {"identical": same, "lost_steps": lost, "repeated_steps": len(steps) - len(set(steps))}
            )
            shutil.rmtree(args.output / "run")
        found["summary"] = summary(found)
        RESULTS.parent.mkdir(exist_ok=True)
        atomic_write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))


def disturb(recipe: Path, run: Path, rng: random.Random) -> dict[str, Any]:
    """One attempt and its fault: `kill`, `full disk` or `damage` (a kill, and then a flipped bit in the newest checkpoint)."""
    kind = rng.choice(["kill", "full disk", "damage"])
    alone = rng.uniform(*UNDISTURBED)
    # Weights and optimiser have some MiB: anything from a config file that cannot be written to an optimiser cut off.
    limit = rng.randrange(2**19, 5 * 2**20) if kind == "full disk" else None
    before, known = _steps(run), set(broken_files(run))
    attempt = Attempt(recipe, run, largest_file=limit)
    usage, seconds = [], 0.0
    while attempt.running and (kind == "full disk" or seconds < alone):
        usage.append(_usage(attempt.processes[0].pid, _steps(run)))
        polled = time.monotonic()
        time.sleep(1)
        seconds += min(time.monotonic() - polled, 2.0)  # not the time for which this experiment was stopped by a signal
    entry: dict[str, Any] = {"fault": kind, "seconds": round(seconds, 1), "from": before}
    if attempt.running:
        attempt.kill(0)
    elif kind == "full disk" and any(attempt.wait()):
        told = attempt.log.read_text(errors="replace").splitlines()
        entry["explained"] = any(line.startswith("ral.runs.checkpoints.CheckpointError") for line in told)
    elif any(attempt.wait()):
        raise RuntimeError(f"the run failed without a fault; see {attempt.log}")
    else:
        entry["fault"] = "none, it ended"
    entry |= {"to": _steps(run), "broken": sorted(set(broken_files(run)) - known), "usage": digest(usage, before)}
    if entry["fault"] == "damage":
        good = [path for path in checkpoints(run) if fault(path) is None]
        if len(good) > 1:
            path = rng.choice(sorted(path for path in good[-1].iterdir() if path.is_file() and path.stat().st_size))
            flip_bit(path, rng.randrange(path.stat().st_size))
            entry["damaged"] = f"{path.parent.name}/{path.name}"
    return entry


def digest(samples: list[dict[str, Any] | None], before: int) -> dict[str, Any] | None:
    """The first and the last third of an attempt's samples: median memory and fewest handles; None for one too short to tell.

    The fewest, because a file that is being written when its handle is counted is closed again, and a leak never is.
    """
    warm = [sample for sample in samples if sample and sample["step"] >= before + WARM_UP]
    third = len(warm) // 3
    if third < 3:
        return None
    thirds = {
        name: [of(sample[name] for sample in part) for part in (warm[:third], warm[-third:])]
        for name, of in (("memory", statistics.median), ("handles", min))
    }
    return {**thirds, "steps_per_second": round((warm[-1]["step"] - warm[0]["step"]) / len(warm), 3)}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Hours, faults, and how much memory and handles grew inside the attempts that were long enough to tell."""
    attempts, ends = found["attempts"], found["ends"]
    measured = [attempt["usage"] for attempt in attempts if attempt["usage"]]
    growth = {
        name: [round(last / first - 1, 4) for first, last in (usage[name] for usage in measured)]
        for name in ("memory", "handles")
    }
    return {
        "attempts_by_commit": dict(Counter(attempt.get("commit") or NOT_RECORDED for attempt in attempts)),
        "hours": round(sum(attempt["seconds"] for attempt in attempts) / 3600, 3),
        "faults": dict(
            Counter(attempt["fault"] for attempt in attempts if "none" not in attempt["fault"]).most_common()
        ),
        "ends": len(ends),
        "ends_identical": sum(end["identical"] for end in ends),
        "lost_steps": sum(len(end["lost_steps"]) for end in ends),
        "repeated_steps": sum(end["repeated_steps"] for end in ends),
        "broken_files": sum(len(attempt["broken"]) for attempt in attempts),
        "full_disks_explained": sum(attempt.get("explained", False) for attempt in attempts),
        "checkpoints_damaged": sum("damaged" in attempt for attempt in attempts),
        "attempts_measured": len(measured),
        "growth": {name: {"median": statistics.median(v), "largest": max(v)} for name, v in growth.items() if v},
        "steps_per_second": (statistics.median(usage["steps_per_second"] for usage in measured) if measured else None),
    }


def _steps(run: Path) -> int:
    try:
        return max((row["step"] for row in read_jsonl(run / "metrics.jsonl")), default=0)
    except FileNotFoundError:
        return 0


def _usage(pid: int | None, step: int) -> dict[str, Any] | None:
    """Resident memory (MiB) and open files of a process; None once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        pages = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")), None)
        handles = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    if pages is None:
        return None
    return {"step": step, "memory": round(int(pages) / 1024, 1), "handles": handles}


if __name__ == "__main__":
    main()
