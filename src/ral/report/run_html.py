"""Runs and evaluations as a notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ral.runs.html import curve, facts, table

#: Settings that tell a run.
_SETTINGS = ("model", "data", "attention_anchor", "attention_coef", "num_generations", "learning_rate", "seed")
#: Metrics and their names, where they are measured.
_METRICS = (("reward", "reward"), ("reward/accuracy", "accuracy"), ("completion_length", "length"), ("kl", "KL"),
            ("visual_share", "looks"))  # fmt: skip
#: Items of an evaluation that are shown.
_ITEMS = 10


def run_html(
    folder: str, config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Any]
) -> str:
    """A run: its settings, each metric's first and last value with its curve, and its evaluations."""
    said = [(name, str(config[name])) for name in _SETTINGS if config.get(name) is not None]
    rows = []
    for key, word in _METRICS:
        values = [row[key] for row in metrics if isinstance(row.get(key), float | int)]
        if values:
            rows.append((word, float(values[0]), float(values[-1]), curve(values)))
    steps = max((row["step"] for row in metrics), default=0)
    parts = [facts([("run", folder), ("steps", steps), *said])]
    parts += [table(("metric", "first", "last", ""), rows)] if rows else []
    parts += [table(("evaluation", "items", "accuracy", "95 % interval", "peak in box", "mass in box"),
                    [summary_row(one.task, one.summary) for one in evaluations])] if evaluations else []  # fmt: skip
    return "".join(parts)


def evaluation_html(task: str, summary: Mapping[str, Any], items: Sequence[Any]) -> str:
    """An evaluation: its figures, and its first items."""
    head = table(
        ("evaluation", "items", "accuracy", "95 % interval", "peak in box", "mass in box"), [summary_row(task, summary)]
    )
    rows = [
        (item.id, item.question, item.solution, item.prediction, "✓" if item.right else "✗") for item in items[:_ITEMS]
    ]
    more = f"<p>… and {len(items) - _ITEMS:,} more in <code>items</code></p>" if len(items) > _ITEMS else ""
    return head + table(("item", "question", "solution", "answer", ""), rows) + more


def summary_row(task: str, summary: Mapping[str, Any]) -> tuple[object, ...]:
    ends, seen = summary.get("ci"), summary.get("grounding") or {}
    interval = f"{ends[0]:.1%} to {ends[1]:.1%}" if ends else ""
    accuracy = summary.get("accuracy")
    return (
        task, summary.get("n"), None if accuracy is None else f"{accuracy:.1%}", interval, seen.get("pointing"), seen.get("mass")
    )  # fmt: skip
