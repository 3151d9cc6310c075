"""What every experiment shares: a recipe trained once, and a model evaluated once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ral.evaluate.answering import load_for_answering
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.selection import find_task
from ral.recipe import BaseRecipe, Recipe
from ral.training.launch import train
from ral.training.sft import SFTTask, fine_tune

RECIPES = Path(__file__).parents[1] / "recipes" / "testbed"
RESULTS = Path(__file__).parent / "results"


def trained(recipe: BaseRecipe) -> Path:
    """The run folder of `recipe`, trained unless that was done; a run that was cut off starts again."""
    folder = Path(str(recipe.args.output_dir))
    if not (folder / "final").exists():
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(recipe, SFTTask):
            fine_tune(recipe)
        else:
            assert isinstance(recipe, Recipe)
            train(recipe)
    return folder


def evaluated(model: str, task: str, held_out: int | None, output: Path, settings: EvalSettings) -> dict[str, Any]:
    """The summary of `model` on `held_out` items of `task` (None: the task's own number), unless that was done."""
    summary = output / "summary.json"
    if not summary.exists():
        evaluate(*load_for_answering(model), find_task(task, n=held_out), output, settings=settings, name=model)
    return json.loads(summary.read_text(encoding="utf-8"))
