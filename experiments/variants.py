"""Every recipe of the testbed, trained and evaluated: `python -m experiments.variants [RECIPE …]`.

One run after the other in one process. A run that has its final model is not repeated, nor is a finished evaluation. Start
and result answer the same held-out records of the recipe's own data (`eval_data`, else `data`), asked as in training. The
figures go to `experiments/results/variants.json`, beside those of earlier calls with other recipes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from experiments.common import RECIPES, RESULTS, evaluated, trained
from ral.evaluate.settings import EvalSettings
from ral.files import atomic_write_text, read_jsonl
from ral.recipe import Recipe, load_recipe
from ral.report import write_report
from ral.runs.folder import machine_class
from ral.testbed import model_name

FILE = RESULTS / "variants.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="*", default=sorted(RECIPES.glob("*.yaml")))
    parser.add_argument("--held-out", type=int, help="records per task; default: the task's own number")
    parser.add_argument("--output", type=Path, default=Path("runs/variants"), help="where the runs are kept")
    args = parser.parse_args()
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for path in args.recipes:
        recipe = load_recipe(path, ["--output_dir", str(args.output / path.stem)])
        if not Path(model_name(recipe.model)).exists():
            print(f"{path.name}: left out, as {recipe.model} does not exist; the recipe says how it is made.")
            continue
        found[path.stem] = variant(recipe, args.output, args.held_out)
        atomic_write_text(FILE, json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    print(table(found))


def variant(recipe: Recipe, output: Path, held_out: int | None) -> dict[str, Any]:
    """Train `recipe` unless that was done; its figures before and after."""
    folder = trained(recipe)
    settings = EvalSettings.of_model(folder)
    data = recipe.eval_data or recipe.data
    tasks = {}
    for name in [data] if isinstance(data, str) else data:
        how = hashlib.blake2b(repr((recipe.model, settings)).encode(), digest_size=4).hexdigest()
        start = output / "before" / how / name
        tasks[name] = {
            "before": accuracy(model_name(recipe.model), name, held_out, start, settings),
            "after": accuracy(str(folder), name, held_out, folder / "eval" / name, settings),
        }
    report = write_report(folder)
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "step_seconds" in row]
    steps = [0, *(row["step"] for row in rows)]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    with_term = recipe.args.attention_coef > 0
    cancelled = [row["attention/cancelled"] for row in rows if with_term and "attention/cancelled" in row]
    return {
        "seed": recipe.args.seed,
        "steps": steps[-1],
        "seconds": round(sum(row["step_seconds"] * (b - a) for row, a, b in zip(rows, steps, steps[1:], strict=False))),
        "tasks": tasks,
        "cancelled": sum(cancelled) / len(cancelled) if cancelled else None,
        "report": str(report),
        "machine": machine_class(),
        "commit": environment["commit"],
    }


def accuracy(model: str, name: str, held_out: int | None, output: Path, settings: EvalSettings) -> dict[str, Any]:
    """Accuracy with its interval, and how often the target is where the row that predicts the answer looks most."""
    found = evaluated(model, name, held_out, output, settings)
    looking = found["grounding"]
    return {**{key: found[key] for key in ("accuracy", "ci", "n")}, "pointing": looking and looking["pointing"]}


def table(found: dict[str, Any]) -> str:
    """Markdown: a line for every recipe and task."""
    lines = ["| recipe | task | before % | after % | [95 %] | pointing game | cancelled | steps | seconds | report |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for name, run in found.items():
        for task, ends in run["tasks"].items():
            before, after = ends["before"], ends["after"]
            low, high = (f"{100 * end:.1f}" for end in after["ci"])
            looks = [before["pointing"], after["pointing"]]
            pointing = "" if None in looks else " → ".join(f"{value:.2f}" for value in looks)
            cancelled = "" if run["cancelled"] is None else f"{run['cancelled']:.0%}"
            lines.append(
                f"| {name} | {task} | {100 * before['accuracy']:.1f} | {100 * after['accuracy']:.1f} | {low}–{high} "
                f"| {pointing} | {cancelled} | {run['steps']} | {run['seconds']} | {run['report']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
