"""Shows the latest completions with their rewards as a table: on the terminal, and to wandb and trackio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.config import RALConfig
from ral.runs.names import SAMPLES

#: Characters of a text in a table on the terminal; longer ones are cut in the middle.
WIDEST = 400


class CompletionsTable(TrainerCallback):
    """Shows the rollouts that a logged step wrote to `samples.jsonl`.

    Args:
        every: logged steps are at least this many steps apart. most: completions to show; None: all that were written.
    """

    def __init__(self, every: int, most: int | None):
        self.every, self.most = every, most
        self._shown = -every
        self._newest = 0  # the step of the completions that were shown last

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if (
            not state.is_world_process_zero
            or "loss" not in (logs or {})
            or state.global_step < self._shown + self.every
        ):
            return
        rows = latest(Path(str(args.output_dir)) / SAMPLES, self.most)
        if not rows or rows[0]["step"] == self._newest:  # a further update on the same rollouts
            return
        self._shown, self._newest = state.global_step, rows[0]["step"]
        Console().print(table(rows))
        trackers = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
        for name in {"wandb", "trackio"} & set(trackers):
            _send(import_module(name), rows)


def tables(args: RALConfig) -> list[TrainerCallback]:
    """The callback that the settings ask for, if they do."""
    every = int(args.log_completions)  # True: every logged step
    return [CompletionsTable(every, args.num_completions_to_print)] if every else []


def latest(samples: Path, most: int | None) -> list[dict[str, Any]]:
    """The completions of the last step in `samples.jsonl`, the first `most` of them."""
    rows = list(_last_step(samples))
    return rows if most is None else rows[:most]


def _last_step(samples: Path) -> Iterator[dict[str, Any]]:
    if not samples.is_file():
        return
    with samples.open("rb") as stream:  # its end, as the file grows with the run
        stream.seek(max(0, samples.stat().st_size - (4 << 20)))
        lines = stream.read().splitlines()
    rows = [json.loads(line) for line in lines[-4096:] if line.startswith(b"{") and line.endswith(b"}")]
    yield from (row for row in rows if row["step"] == rows[-1]["step"])


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Question, solution, completion, every reward and the advantage of each row."""
    names = list(rows[0]["rewards"])
    shown = Table(title=f"completions of step {rows[0]['step']}", show_lines=True, title_justify="left")
    for name in ("question", "solution", "completion"):
        shown.add_column(name, overflow="fold")
    for name in (*names, "advantage"):
        shown.add_column(name, justify="right")
    for row in rows:
        texts = (_cut(str(row[name])) for name in ("question", "solution", "completion"))
        values = (_number(row["rewards"].get(name)) for name in names)
        shown.add_row(*map(_plain, texts), *values, _number(row["advantage"]))
    return shown


def _send(tracker: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log the rows as a table of the tracker, whose run transformers has begun; as TRL does, at the tracker's own step."""
    from pandas import DataFrame

    flat = [{**{k: v for k, v in row.items() if k not in ("rewards", "prompt")}, **row["rewards"]} for row in rows]
    tracker.log({"completions": tracker.Table(dataframe=DataFrame(flat))})


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST // 2]} … {text[-WIDEST // 2 :]}"


def _plain(text: str) -> str:
    """Text of a model is no markup."""
    return text.replace("[", "\\[")


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"
