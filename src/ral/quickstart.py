"""`ral quickstart`: trains GRPO beside RAL from the shipped start checkpoint and writes the page that compares them.

All arms see the same prompts in the same order, draw their random numbers from the same seed and make the same number of
updates. Each arm runs in a process of its own with its share of the cores.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ral.errors import RunError
from ral.files import atomic_write_text, read_jsonl
from ral.runs.folder import machine_class
from ral.runs.names import EVALUATIONS, FINAL, METRICS, QUICKSTART

#: What all arms share. Tuned for the GRPO arm first (experiments/LOG.md), then left alone.
SETTINGS: dict[str, Any] = {
    "template": "plain",
    "think": True,
    "num_generations": 8,
    "per_device_train_batch_size": 128,
    "num_iterations": 2,
    "beta": 0.0,
    "temperature": 1.0,
    "max_completion_length": 24,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "adam_beta2": 0.99,
    "max_steps": 160,
    "loss_type": "dapo",
    "attention_layers": [-1],
}


@dataclass(frozen=True)
class Arm:
    """One training run of the comparison: the shared settings with these changes."""

    name: str
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)


ARMS = (
    Arm("grpo", "GRPO", {"attention_coef": 0.0}),
    Arm("ral-old", "RAL (paper)", {"attention_coef": 1.0, "attention_anchor": "old"}),
    Arm("ral-explore", "RAL (explore)", {"attention_coef": 10.0, "attention_anchor": "explore", "explore_sigma": 0.5}),
)
START = Arm("start", "Start")

#: Seeds of the images; training and held-out images never share one.
TRAINING_DATA_SEED, LOOKS_DATA_SEED = 1, -1
#: Held-out images that are looked at along training, and the optimiser steps between two looks.
LOOK_ITEMS, LOOK_STEPS = 6, 16
#: Seconds between two writings of the page while the arms are trained.
PAGE_SECONDS = 20.0


def run_quickstart(
    output: Path, *, seed: int = 0, steps: int | None = None, held_out: int = 512, overwrite: bool = False
) -> Path:
    """Train the arms, evaluate them and the start checkpoint on held-out images, write the report.

    Args:
        output: folder of the experiment; one sub-folder per arm.
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
    total = steps if steps is not None else SETTINGS["max_steps"]
    description = {
        "seed": seed,
        "task": "rings",
        "machine": machine_class(),
        "arms": [{"name": arm.name, "label": arm.label, "path": arm.name} for arm in (START, *ARMS)],
        "commands": [_command(output, seed, steps, held_out)],
        "seconds": None,
    }
    atomic_write_text(output / QUICKSTART, json.dumps(description, indent=2) + "\n")
    # All arms at once, also on fewer cores than arms: one left for later would have one core, and the others none to work on.
    threads = max(1, (os.cpu_count() or 1) // len(ARMS))
    context = multiprocessing.get_context("spawn")  # torch must not be forked
    with ProcessPoolExecutor(len(ARMS), mp_context=context) as pool:
        jobs = {arm.name: pool.submit(run_arm, arm, output, seed, total, held_out, threads) for arm in ARMS}
        jobs[START.name] = pool.submit(run_start, output, held_out, threads)
        _follow(output, jobs, total)
        description["seconds"] = {name: job.result() for name, job in jobs.items()}
    atomic_write_text(output / QUICKSTART, json.dumps(description, indent=2) + "\n")
    return write_report(output)


def _finished(output: Path) -> bool:
    """Whether the folder holds a quickstart that came to its end: only then its times are known."""
    index = output / QUICKSTART
    return index.exists() and json.loads(index.read_text(encoding="utf-8"))["seconds"] is not None


def arm_settings(arm: Arm, seed: int, steps: int) -> dict[str, Any]:
    """Every setting of an arm, as `RALConfig` takes them."""
    return {**SETTINGS, **arm.changes, "seed": seed, "max_steps": steps, "save_strategy": "no", "disable_tqdm": True}


def run_arm(arm: Arm, output: Path, seed: int, steps: int, held_out: int, threads: int) -> float:
    """Train and evaluate one arm; returns the seconds its training took."""
    from transformers import PrinterCallback

    from ral.config import RALConfig
    from ral.evaluate.look_recorder import LookRecorder
    from ral.runs.folder import prepare_run
    from ral.testbed import load_start
    from ral.testbed.rings import ring_records
    from ral.training.trainer import RALTrainer

    _quiet_worker(threads)
    settings = arm_settings(arm, seed, steps)
    folder = output / arm.name
    prepare_run(folder, settings, overwrite=True)
    args = RALConfig(output_dir=str(folder), **settings)
    model, processor = load_start()
    prompts = args.prompts_per_batch * -(-steps // args.num_iterations)
    trainer = RALTrainer(
        model,
        args,
        train_dataset=ring_records(prompts, seed=TRAINING_DATA_SEED),
        processing_class=processor,
        callbacks=[LookRecorder(ring_records(LOOK_ITEMS, seed=LOOKS_DATA_SEED), LOOK_STEPS)],
    )
    trainer.remove_callback(PrinterCallback)  # the parent shows the progress of all arms
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    trainer.save_model(str(folder / FINAL))
    processor.save_pretrained(folder / FINAL)
    _evaluate(folder / FINAL, arm.label, folder / EVALUATIONS, held_out)
    return seconds


def run_start(output: Path, held_out: int, threads: int) -> float:
    """Evaluate the start checkpoint."""
    from ral.testbed import start_checkpoint

    _quiet_worker(threads)
    begin = time.perf_counter()
    _evaluate(start_checkpoint(), START.label, output / START.name / EVALUATIONS, held_out)
    return time.perf_counter() - begin


def _quiet_worker(threads: int) -> None:
    """Use this many threads, and leave the terminal to the parent."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()


def _evaluate(checkpoint: Path, name: str, output: Path, held_out: int) -> None:
    """Answers and attention of a checkpoint on held-out images, asked as in training; `name` is what pages call it."""
    from ral.evaluate.runner import evaluate
    from ral.evaluate.settings import EvalSettings
    from ral.evaluate.tasks.testbed import rings_task
    from ral.models.loading import load_model, load_processor

    task = rings_task(held_out)
    evaluate(
        load_model(checkpoint).eval(),
        load_processor(checkpoint),
        task,
        output / task.name,
        settings=EvalSettings(**{key: SETTINGS[key] for key in ("think", "template", "max_completion_length")}),
        name=name,
        overwrite=True,
    )


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
        bars = {arm.name: progress.add_task(arm.label, total=steps, reward="–") for arm in ARMS}
        due = time.monotonic() + PAGE_SECONDS / 2
        while not all(job.done() for job in jobs.values()):
            for name, bar in bars.items():
                step, reward = _last_step(output / name / METRICS)
                progress.update(bar, completed=step, reward=reward)
            for job in jobs.values():
                if job.done():
                    job.result()
            if time.monotonic() > due:
                write_report(output, running=True)
                due = time.monotonic() + PAGE_SECONDS
            time.sleep(0.5)
        for name, bar in bars.items():
            step, reward = _last_step(output / name / METRICS)
            progress.update(bar, completed=step, reward=reward)


def _last_step(metrics: Path) -> tuple[int, str]:
    if not metrics.exists():
        return 0, "–"
    rows = [row for row in read_jsonl(metrics) if row.get("reward") is not None]
    return (int(rows[-1]["step"]), f"{rows[-1]['reward']:.2f}") if rows else (0, "–")


def _command(output: Path, seed: int, steps: int | None, held_out: int) -> str:
    """The command that made this experiment."""
    words = ["ral quickstart", f"--output {output}", f"--seed {seed}", f"--held-out {held_out}"]
    return " ".join(words + ([] if steps is None else [f"--steps {steps}"]))
