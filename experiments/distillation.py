"""Does attention distillation bring a student nearer to its teacher? `python -m experiments.distillation --seeds 0 1 2`.

Students of `recipes/testbed/distill-gkd.yaml` (tokens) and `distill-both.yaml` (tokens and attention), shortened, and the start
they have in common, against the shipped teacher on held-out rings: accuracy of the most likely completions, and over the
tokens of those completions the mean JSD (nats) between both models' attention rows of the last layer and between their
token distributions. One run after the other; complete ones are not repeated. Figures: `experiments/results/distillation.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.common import RECIPES, RESULTS, trained
from ral.attention import forward_groups
from ral.evaluate.answering import answer, load_for_answering
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.testbed import rings_task
from ral.files import atomic_write_text
from ral.objective.divergence import jensen_shannon
from ral.recipe import load_recipe
from ral.rewards.answers import extract_answer, same_text
from ral.runs.folder import machine_class, source_commit
from ral.statistics import seed_interval
from ral.testbed import start_checkpoint, teacher_checkpoint
from ral.training.distillation import TokenDivergence, teacher_pass

FILE = RESULTS / "distillation.json"
ARMS = {"tokens": "distill-gkd", "tokens + attention": "distill-both"}
FIGURES = ("accuracy", "attention_jsd", "token_jsd")
ASKED = EvalSettings(template="plain", max_completion_length=24)
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--output", type=Path, default=Path("runs/distillation"), help="where the runs are kept")
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        for arm, recipe in ARMS.items():
            words = {"seed": seed, "max_steps": args.steps, "output_dir": args.output / f"{recipe}-{seed}"}
            overrides = [f"--{key}={value}" for key, value in words.items()]
            folder = trained(load_recipe(RECIPES / f"{recipe}.yaml", overrides))
            runs.append({"seed": seed, "arm": arm, **nearness(folder / "final", args.held_out, folder)})
    results = {
        "command": f"python -m experiments.distillation --seeds {' '.join(map(str, args.seeds))} --steps {args.steps}",
        "machine": machine_class(),
        "commit": source_commit(),
        "held_out": args.held_out,
        "start": nearness(start_checkpoint(), args.held_out, args.output / "start"),
        "teacher": nearness(teacher_checkpoint(), args.held_out, args.output / "teacher"),
        "runs": runs,
    }
    atomic_write_text(FILE, json.dumps(results, indent=1) + "\n")
    print(table(results))


@torch.no_grad()
def nearness(student: Path, held_out: int, folder: Path) -> dict[str, float]:
    """Accuracy of `student`, and how far its attention and its tokens are from the teacher's; kept in `folder`."""
    kept = folder / "nearness.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    model, processor = load_for_answering(student)
    teacher, _ = load_for_answering(teacher_checkpoint())
    for one in (model, teacher):
        one.requires_grad_(False)
    records = list(rings_task(held_out).records())
    right: list[float] = []
    attention, tokens = [], []
    for start in range(0, len(records), BATCH):
        answered = answer(model, processor, records[start : start + BATCH], ASKED)
        found = [extract_answer(item.text, ASKED.scorer, ASKED.think) for item in answered]
        right += [float(same_text(a or "", item.record.solution)) for a, item in zip(found, answered, strict=True)]
        prompts, completions = [item.prompt for item in answered], [[item.completion.ids] for item in answered]
        taught = teacher_pass(teacher, prompts, completions, layers=[-1], query="token", temperature=1.0)
        gkd = TokenDivergence(teacher.get_output_embeddings(), torch.cat([hidden for _, hidden in taught]), 0.5, 1.0)
        for own, (target, _) in zip(
            forward_groups(model, prompts, completions, token_statistics=gkd), taught, strict=True
        ):
            attention.append(jensen_shannon(own.attention, target.attention)[own.mask])
            tokens.append(own.extra["gkd"][own.mask])
    figures = {
        "accuracy": sum(right) / len(right),
        "attention_jsd": float(torch.cat(attention).mean()),
        "token_jsd": float(torch.cat(tokens).mean()),
    }
    atomic_write_text(kept, json.dumps(figures) + "\n")
    return figures


def table(results: dict[str, Any]) -> str:
    """Markdown: every arm's figures as means over seeds, and the paired difference with its 95 % t-interval."""
    scale = {"accuracy": 100.0, "attention_jsd": 1000.0, "token_jsd": 1000.0}
    lines = ["| | accuracy % | attention JSD (10⁻³ nats) | token JSD (10⁻³ nats) |", "|---|---|---|---|"]
    for name in ("start", "teacher"):
        lines.append(f"| {name} | " + " | ".join(f"{scale[f] * results[name][f]:.1f}" for f in FIGURES) + " |")
    values = {
        arm: {f: scale[f] * np.array([run[f] for run in results["runs"] if run["arm"] == arm]) for f in FIGURES}
        for arm in ARMS
    }
    for arm, found in values.items():
        cells = [f"{found[f].mean():.1f} ({', '.join(f'{value:.1f}' for value in found[f])})" for f in FIGURES]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    one, other = values.values()
    lines.append("| difference | " + " | ".join(f"{seed_interval(other[f] - one[f]):+.1f}" for f in FIGURES) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
