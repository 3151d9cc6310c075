"""Shows a run on the terminal: a header, then one line per logged step. `metrics.jsonl` holds all metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import is_in_notebook

from ral.runs.announcement import short
from ral.runs.chosen_heads import read_chosen_heads
from ral.training.live_table import LiveTable

#: Word, metric and form of what a line shows, where it is measured: of reinforcement, then of fine-tuning.
COLUMNS = (
    ("reward", "reward", ".3f"),
    ("accuracy", "reward/accuracy", ".3f"),
    ("length", "completion_length", ".0f"),
    ("KL", "kl", ".4f"),
    ("looks", "visual_share", ".0%"),
    ("token accuracy", "mean_token_accuracy", ".3f"),
)


class TerminalLog(TrainerCallback):
    """The header and the lines of a run, on the main process.

    Args:
        task: the model's name and the number of records, in words.
    """

    def __init__(self, task: str):
        self.task = task
        self._begun = time.monotonic()
        self._first = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self._begun, self._first = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            typer.echo(f"{self.task}; {_parameters(model)}; {state.max_steps - self._first:,} steps")
            heads = read_chosen_heads(Path(str(args.output_dir)))
            if heads is not None and heads.heads == getattr(args, "attention_heads", None):
                typer.echo(heads.sentence())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            left = self._left(state) if "loss" in logs else None
            typer.echo(line(state.global_step, state.max_steps, logs, left))

    def _left(self, state: TrainerState) -> float:
        """Seconds, at the pace so far."""
        done = max(1, state.global_step - self._first)
        return (time.monotonic() - self._begun) / done * (state.max_steps - state.global_step)


def show(trainer: Trainer, task: str) -> None:
    """Let the trainer report its steps in lines, or in a notebook as a table, in place of transformers' dictionaries and bars."""
    for callback in (PrinterCallback, ProgressCallback, DEFAULT_PROGRESS_CALLBACK, TerminalLog, LiveTable):
        trainer.remove_callback(callback)
    trainer.add_callback(LiveTable() if is_in_notebook() else TerminalLog(task))


def line(step: int, steps: int, logs: Mapping[str, float], left: float | None) -> str:
    """One logged step, or one evaluation, as a line; `left` are the seconds that the run still takes."""
    kind = "eval_" if any(name.startswith("eval_") for name in logs) else ""
    shown = [f"{word} {logs[kind + name]:{form}}" for word, name, form in COLUMNS if kind + name in logs]
    if kind + "reward" not in logs and kind + "loss" in logs:
        shown.insert(0, f"loss {logs[kind + 'loss']:.4f}")
    shown += [] if left is None else [f"left {timedelta(seconds=round(left))}"]
    return "  ".join([f"step {step:>{len(str(steps))}}/{steps}", *(["held out"] if kind else []), *shown])


def _parameters(model: nn.Module | None) -> str:
    """How many there are, and how many are trained: of sharded weights those of all processes."""
    sizes = [] if model is None else [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return f"{short(sum(n for n, trained in sizes if trained))} of {short(sum(n for n, _ in sizes))} parameters trained"
