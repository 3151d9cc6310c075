"""A short run of every option of GRPO, to a report: `python -m experiments.grpo_options`.

Each run is the testbed's GRPO with RAL's `explore` anchor, for four optimiser steps at temperature 1.5 (lengths differ), with one
option changed. It shows that the option works with the packed row, the attention term and the report; four steps compare
nothing. The table goes to `experiments/results/grpo_options.md`, the run folders to `runs/options`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ral.files import atomic_write_text, read_jsonl
from ral.recipe import load_recipe
from ral.runs.folder import machine_class, source_commit
from ral.training.launch import train

RESULTS = Path(__file__).parent / "results" / "grpo_options.md"
RECIPE = Path(__file__).parents[1] / "recipes" / "testbed" / "explore.yaml"
STEPS = 4

#: The rewards with the punishment of long completions, as words of the command line.
_OVERLONG = {"reward_funcs": "[accuracy, format, soft_overlong_punishment]", "reward_weights": "[0.9, 0.1, 0.5]"}

OPTIONS: dict[str, dict[str, Any]] = {
    "none of them": {},
    "loss_type: grpo": {"loss_type": "grpo"},
    "loss_type: dr_grpo": {"loss_type": "dr_grpo"},
    "loss_type: bnpo": {"loss_type": "bnpo"},
    "loss_type: cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "loss_type: sapo": {"loss_type": "sapo"},
    "loss_type: luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "importance_sampling_level: sequence": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "delta": {"delta": 4.0},
    "scale_rewards: batch": {"scale_rewards": "batch"},
    "scale_rewards: none": {"scale_rewards": "none"},
    "dynamic_sampling": {"dynamic_sampling": "true"},
    "steps_per_generation": {"steps_per_generation": 2, "num_iterations": 1},
    "mask_truncated_completions": {"mask_truncated_completions": "true", "max_completion_length": 11},
    "soft_overlong_punishment": {"soft_punish_cache": 8, "max_completion_length": 16, **_OVERLONG},
    "entropy_coef": {"entropy_coef": 0.01},
    "top_entropy_quantile": {"top_entropy_quantile": 0.2},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "sync_ref_model": {"sync_ref_model": "true", "ref_model_sync_steps": 2, "beta": 0.04},
    "max_prompt_length": {"max_prompt_length": 256},
}
COLUMNS = ("loss", "reward", "entropy", "kl", "clip_fraction", "completion_length", "truncated", "prompts_replaced")


def run(name: str, number: int, folder: Path) -> dict[str, Any]:
    """The last logged step of a run, and the size of its report."""
    output = folder / f"{number:02d}"
    settings = {
        "output_dir": output, "max_steps": STEPS, "seed": 0, "save_strategy": "no", "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1, "eval_strategy": "no", "temperature": 1.5, **OPTIONS[name],
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    train(load_recipe(RECIPE, words), overwrite=True)
    report = output / "report.html"
    return list(read_jsonl(output / "metrics.jsonl"))[STEPS - 1] | {"report_kib": report.stat().st_size / 1024}


def table(rows: dict[str, dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], column: str) -> str:
        return f"{row[column]:.4g}" if column in row else "–"

    lines = [f"| option | {' | '.join(COLUMNS)} | report, KiB |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, row in rows.items():
        cells = [cell(row, column) for column in COLUMNS]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {row['report_kib']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/options"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = {name: run(name, number, given.runs) for number, name in enumerate(OPTIONS)}
    head = (
        f"Step {STEPS} of {STEPS}, seed 0, commit {source_commit()}, {machine_class()}; `python -m experiments.grpo_options`.\n"
        "Four steps show that an option runs; they compare nothing.\n\n"
    )
    atomic_write_text(given.results, head + table(rows) + "\n")


if __name__ == "__main__":
    main()
