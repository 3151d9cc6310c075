"""`ral quickstart`: trains GRPO and RAL from the shipped start checkpoint and writes a page that compares them.

Every arm is a recipe (`ral/testbed/recipes`). It is trained as by `ral train` and evaluated as by `ral eval`, in its own process
with its share of the cores. All arms get the same prompts in the same order, use the same seed and make the same number of updates.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import redirect_stdout
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ral.errors import RunError
from ral.files import atomic_write_text, read_jsonl
from ral.runs.folder import machine_class
from ral.runs.names import EVALUATIONS, METRICS, QUICKSTART

if TYPE_CHECKING:
    from ral.recipe import Recipe

#: The recipes of the arms, by name, and what pages call them. Tuned for GRPO first (experiments/LOG.md), then left alone.
LABELS = {"grpo": "GRPO", "ral-old": "RAL (paper)", "ral-explore": "RAL (explore)"}
#: The checkpoint that all arms begin with, which is evaluated beside them, and what pages call it.
START, START_LABEL = "start", "Start"
#: The data of training, and of the evaluation.
TASK = "rings"
#: Seconds between two writings of the page while the arms are trained.
PAGE_SECONDS = 20.0


def run_quickstart(
    output: Path, *, seed: int = 0, steps: int | None = None, held_out: int = 512, overwrite: bool = False
) -> Path:
    """Train the arms, evaluate them and the start checkpoint on held-out images, write the report.

    Args:
        output: folder of the experiment; one run folder per arm.
        seed: of the order of prompts and of every rollout. steps: optimiser steps per arm. held_out: evaluated images.

    Returns:
        The path of `report.html`.

    Raises:
        RunError: the folder holds an experiment already and `overwrite` is not set.
    """
    from ral.report import write_report

    output = Path(output)
    if _finished(output) and not overwrite:
        raise RunError(f"{output}: already holds a quickstart; choose another folder or replace it with --overwrite.")
    total = arm_recipe(next(iter(LABELS)), output, seed, steps).args.max_steps
    description = {
        "seed": seed,
        "task": TASK,
        "machine": machine_class(),
        "arms": [{"name": n, "label": label, "path": n} for n, label in {START: START_LABEL, **LABELS}.items()],
        "commands": [_command(output, seed, steps, held_out)],
        "seconds": None,
    }
    atomic_write_text(output / QUICKSTART, json.dumps(description, indent=2) + "\n")
    # All arms at once, also on fewer cores than arms: one left for later would have one core, and the others none to work on.
    threads = max(1, (os.cpu_count() or 1) // len(LABELS))
    context = multiprocessing.get_context("spawn")  # torch must not be forked
    with ProcessPoolExecutor(len(LABELS), mp_context=context) as pool:
        jobs = {name: pool.submit(run_arm, name, output, seed, steps, held_out, threads) for name in LABELS}
        jobs[START] = pool.submit(run_start, output, held_out, threads)
        _follow(output, jobs, total)
        description["seconds"] = {name: job.result() for name, job in jobs.items()}
    atomic_write_text(output / QUICKSTART, json.dumps(description, indent=2) + "\n")
    return write_report(output)


def _finished(output: Path) -> bool:
    """Whether the folder holds a quickstart that came to its end: only then its times are known."""
    index = output / QUICKSTART
    return index.exists() and json.loads(index.read_text(encoding="utf-8"))["seconds"] is not None


def arm_recipe(name: str, output: Path, seed: int, steps: int | None = None) -> Recipe:
    """The recipe of an arm, its run in `output`. Of other `steps` than its own it has as many prompts as these take."""
    from ral.recipe import load_recipe

    file = str(files("ral.testbed") / "recipes" / f"{name}.yaml")
    words = ["--output_dir", str(output / name), "--seed", str(seed), "--disable_tqdm", "true"]
    recipe = load_recipe(file, words)
    if steps is None:
        return recipe
    prompts = recipe.args.prompts_per_batch * -(-steps // recipe.args.num_iterations)
    return load_recipe(file, [*words, "--max_steps", str(steps), "--data", f"{TASK}[:{prompts}]"])


def run_arm(name: str, output: Path, seed: int, steps: int | None, held_out: int, threads: int) -> float:
    """Train and evaluate one arm, with its own page; returns the seconds its training took."""
    from ral.report import write_report
    from ral.training.launch import train

    _quiet_worker(threads)
    recipe = arm_recipe(name, output, seed, steps)
    begin = time.perf_counter()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # the parent shows the progress of all arms
        folder = train(recipe, overwrite=True)
    seconds = time.perf_counter() - begin
    _evaluate(folder, LABELS[name], folder, held_out)
    write_report(folder)  # in place of the one that followed the training
    return seconds


def run_start(output: Path, held_out: int, threads: int) -> float:
    """Evaluate the start checkpoint, asked as the arms are."""
    from ral.testbed import start_checkpoint

    _quiet_worker(threads)
    begin = time.perf_counter()
    asked = arm_recipe(next(iter(LABELS)), output, seed=0).settings()
    _evaluate(start_checkpoint(), START_LABEL, output / START, held_out, asked)
    return time.perf_counter() - begin


def _quiet_worker(threads: int) -> None:
    """Use this many threads, and leave the terminal to the parent."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()


def _evaluate(model: Path, label: str, run: Path, held_out: int, asked: Mapping[str, Any] | None = None) -> None:
    """Evaluate `model` on held-out images into the run folder, asked as its run was or as the settings `asked` say."""
    from ral.evaluate.answering import load_for_answering
    from ral.evaluate.runner import evaluate
    from ral.evaluate.settings import EvalSettings
    from ral.evaluate.tasks.selection import find_task

    settings = EvalSettings.of_model(model) if asked is None else EvalSettings.of_config(asked)
    place = run / EVALUATIONS / TASK
    loaded, processor = load_for_answering(model)
    evaluate(loaded, processor, find_task(TASK, n=held_out), place, settings=settings, name=label, overwrite=True)


def _follow(output: Path, jobs: Mapping[str, Future[float]], steps: int) -> None:
    """Show every arm's progress, reward and time left, from the metrics it writes, until all are done; and write the page
    of what there is now and then.

    Raises whatever an arm raised; the others are not waited for.
    """
    from ral.report import write_report

    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description:14}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("reward {task.fields[reward]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bars = {name: progress.add_task(label, total=steps, reward="–") for name, label in LABELS.items()}

        def update() -> None:
            for name, bar in bars.items():
                step, reward = _last_step(output / name / METRICS)
                progress.update(bar, completed=step, reward=reward)

        due = time.monotonic() + PAGE_SECONDS / 2
        while not all(job.done() for job in jobs.values()):
            update()
            for job in jobs.values():
                if job.done():
                    job.result()
            if time.monotonic() > due:
                write_report(output, running=True)
                due = time.monotonic() + PAGE_SECONDS
            time.sleep(0.5)
        update()


def _last_step(metrics: Path) -> tuple[int, str]:
    if not metrics.exists():
        return 0, "–"
    rows = [row for row in read_jsonl(metrics) if row.get("reward") is not None]
    return (int(rows[-1]["step"]), f"{rows[-1]['reward']:.2f}") if rows else (0, "–")


def _command(output: Path, seed: int, steps: int | None, held_out: int) -> str:
    """The command that made this experiment, as a shell reads it."""
    words = ["ral", "quickstart", "--output", str(output), "--seed", str(seed), "--held-out", str(held_out)]
    return shlex.join(words + ([] if steps is None else ["--steps", str(steps)]))
