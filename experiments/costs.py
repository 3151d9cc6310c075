"""What an update of an arm costs beside GRPO's: `python -m experiments.costs` (on a machine that does nothing else).

The arms of the table "who is told what" make a few updates in turn, in one process and on one thread, so that what else slows the
machine slows all of them. `results/costs.json` holds, by study and arm, the median over rounds of an arm's time over GRPO's in the same
round. Studies that are there are not measured again. Those whose start is a folder need it (see the study's note), and are left out, and
named, without it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from experiments.common import RESULTS, trained
from experiments.studies import STUDIES, Study
from experiments.study import recipe_of
from experiments.told import OURS
from ral.files import atomic_write_text, read_jsonl
from ral.runs.folder import machine_class, source_commit

FILE = RESULTS / "costs.json"
#: Updates of a run, and those at its begin that are not timed (two make one batch of rollouts).
UPDATES, WARMING = 10, 2


def seconds(study: Study, arm: str) -> float:
    """Time of the updates of one short run, rollouts included; nothing is looked at on the way."""
    changes = dict(study.arms[arm].changes) | {"max_steps": UPDATES, "save_strategy": "no", "look_steps": 0}
    quick = replace(study, arms={arm: replace(study.arms[arm], changes=changes)})
    with tempfile.TemporaryDirectory() as folder:
        rows = list(read_jsonl(trained(recipe_of(quick, arm, 0, Path(folder))) / "metrics.jsonl"))
    return sum(row["step_seconds"] for row in rows if "step_seconds" in row and row["step"] > WARMING)


def costs(study: Study, arms: list[str], rounds: int) -> dict[str, float]:
    """By arm, its time over GRPO's: the median over rounds."""
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        base = seconds(study, "grpo")
        for arm in arms:
            found[arm].append(seconds(study, arm) / base)
    return {arm: round(median(ratios), 3) for arm, ratios in found.items()}


def read_costs() -> dict[str, dict[str, float]]:
    """The ratios that are known, by study and arm."""
    return {name: found["ratios"] for name, found in _known().items()}


def _known() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    found = _known()
    for name in dict.fromkeys(row.study for row in OURS):
        if name in found:
            continue
        start = recipe_of(STUDIES[name], "grpo", 0, Path("runs")).model
        if start.startswith("runs/") and not Path(start).is_dir():
            print(f"{name}: left out, as {start} is not there")
            continue
        arms = list(dict.fromkeys(row.arm for row in OURS if row.study == name))
        ratios = costs(STUDIES[name], arms, given.rounds)
        found[name] = {
            "ratios": ratios,
            "updates": UPDATES - WARMING,
            "rounds": given.rounds,
            "commit": source_commit(),
            "machine": machine_class(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python -m experiments.costs --rounds {given.rounds}",
        }
        atomic_write_text(FILE, json.dumps(found, indent=1) + "\n")
        print(name, ratios, flush=True)


if __name__ == "__main__":
    main()
