"""Runs killed at random moments against runs left alone: `python -m experiments.kills`.

Every case is trained once without disturbance. Then it is trained again and again: one of its processes gets SIGKILL after a
random time, once or twice, and the run is resumed to its end, which must be the undisturbed one bit for bit. After every kill the run folder is
read as a user would. The figures go to `experiments/results/kills.json` after each kill, and a further call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.killing import LORA, Attempt, Case, broken_files, result

from ral.files import atomic_write_text, read_jsonl
from ral.runs.checkpoints import MANIFEST, checkpoints
from ral.runs.folder import machine_class

RESULTS = Path(__file__).parent / "results" / "kills.json"

#: Every process has its part of all weights, reads it from the first one, and writes its own part of checkpoints.
FULL_SHARD = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    },
}

CASES = (
    Case("one-full-old", 1, {"attention_anchor": "old", "max_steps": 16}),
    Case("one-lora-explore-accumulated", 1, {
        "attention_anchor": "explore", "max_steps": 16, "peft": LORA, "gradient_accumulation_steps": 2,
    }),
    Case("two-full-explore", 2, {"attention_anchor": "explore", "max_steps": 16, "attention_share": 0.5}),
    Case("two-lora-old-accumulated", 2, {
        "attention_anchor": "old", "max_steps": 16, "peft": LORA, "gradient_accumulation_steps": 2,
    }),
    Case("two-sharded-full-old", 2, {"attention_anchor": "old", "max_steps": 8, **FULL_SHARD}),
    Case("two-sharded-lora-explore", 2, {"attention_anchor": "explore", "max_steps": 8, "peft": LORA, **FULL_SHARD}),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ends", type=int, default=24, help="of killed runs, of all cases together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="these alone")
    parser.add_argument("--output", type=Path, default=Path("runs/kills"), help="where the runs are kept")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    found |= {"machine": machine_class(), "seed": args.seed}
    cases = found.setdefault("cases", {})
    chosen = [case for case in CASES if args.cases is None or case.name in args.cases]
    for case in chosen:
        record = cases.setdefault(case.name, {"processes": case.processes, "kills": [], "ends_identical": []})
        folder = args.output / case.name
        recipe, whole = case.write(folder), folder / "whole"
        while not (whole / "final").exists():
            started, attempt = time.time(), Attempt(recipe, whole, case.processes)
            record["start_s"] = until_training(attempt, whole, started) - started
            ended(attempt, case)
            record["train_s"] = time.time() - started - record["start_s"]
        share = -(-args.ends // len(chosen))
        while len(record["ends_identical"]) < share:
            disturb(case, recipe, folder, record, args.seed)
            save(found)
    print(json.dumps(found["summary"], indent=1))


def disturb(case: Case, recipe: Path, folder: Path, record: dict[str, Any], seed: int) -> None:
    """One more attempt: killed at a random moment, or ended, and then held against the undisturbed run if it was killed before.

    A quarter of the moments is counted from the start of the processes, the others from the start of training, so that
    loading the model, which takes longer than a step, does not get all of them.
    """
    run, number = folder / "run", len(record["ends_identical"])
    killed = sum(kill.get("run") == number for kill in record["kills"])
    record["attempts"] = record.get("attempts", 0) + 1
    rng = random.Random(f"{seed}/{case.name}/{record['attempts']}")
    from_start, victim = rng.random() < 0.25, rng.randrange(case.processes)
    moment = rng.uniform(0, record["start_s" if from_start else "train_s"])
    to_its_end = killed > rng.randrange(2)
    started, attempt = time.time(), Attempt(recipe, run, case.processes)
    began = started if from_start else until_training(attempt, run, started)
    while attempt.running and (to_its_end or time.time() - began < moment):
        time.sleep(0.002)
    if attempt.running:
        where = phase(run, started)
        attempt.kill(victim)
        record["kills"].append({"victim": victim, "phase": where, "broken": broken_files(run), "run": number})
        return
    ended(attempt, case)
    if killed:
        record["ends_identical"].append(result(run) == result(folder / "whole"))
    shutil.rmtree(run)


def until_training(attempt: Attempt, run: Path, started: float) -> float:
    """When the attempt began to train, or ended without."""
    while attempt.running and not training(run, started):
        time.sleep(0.002)
    return time.time()


def ended(attempt: Attempt, case: Case) -> None:
    codes = attempt.wait()
    if any(codes):
        raise RuntimeError(f"{case.name} failed without being killed; see {attempt.log}")


def phase(run: Path, started: float) -> str:
    """What the attempt was doing, from what it had written since it was `started` (seconds since the epoch)."""
    metrics, samples = run / "metrics.jsonl", run / "samples.jsonl"
    if any(not (path / MANIFEST).exists() and path.stat().st_mtime > started for path in checkpoints(run)):
        return "saving"
    if (run / ".final").exists() and (run / ".final").stat().st_mtime > started:
        return "saving the final model"
    if not training(run, started):
        return "starting"
    rolled_out = max((row["step"] for row in read_jsonl(samples)), default=0)
    trained = max((row["step"] for row in read_jsonl(metrics)), default=0) if metrics.exists() else 0
    return "updates" if trained <= rolled_out else "rollouts"


def training(run: Path, started: float) -> bool:
    """Whether an attempt has begun to train: it cuts the samples of the run that it goes on with, or writes the first."""
    samples = run / "samples.jsonl"
    return samples.exists() and samples.stat().st_mtime > started


def save(found: dict[str, Any]) -> None:
    kills = [kill for record in found["cases"].values() for kill in record["kills"]]
    ends = [end for record in found["cases"].values() for end in record["ends_identical"]]
    found["summary"] = {
        "kills": len(kills),
        "by_phase": dict(Counter(kill["phase"] for kill in kills).most_common()),
        "by_victim": dict(Counter(f"rank {kill['victim']}" for kill in kills).most_common()),
        "broken_files": sum(len(kill["broken"]) for kill in kills),
        "ends": len(ends),
        "ends_identical": sum(ends),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    atomic_write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
