"""Reads what runs and evaluations left on disk into typed values; every text that a page may show is made printable here.

A report is often wanted for a run that is unfinished, was killed, or was never evaluated. What cannot be read becomes a
notice that the page shows; only a folder in which there is nothing to report is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ral.data.record import DataError
from ral.report.templating import clip

Json = dict[str, Any]

MAX_LABEL = 60

#: Lone surrogates cannot be written as UTF-8, and control characters have no place on a page.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Evaluation:
    """`eval/<task>/`: the summary and its items by id, in the order of the file. `folder` is where images lie."""

    task: str
    folder: Path
    summary: Json
    items: dict[str, Json]


@dataclass(frozen=True)
class Arm:
    """One model of the comparison: a run folder and its evaluations by task. `seconds` is its wall-clock time.

    `label` stands in every table, legend and sentence of the page, and is short.
    """

    name: str
    label: str
    folder: Path
    config: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    metrics: list[Json] = field(default_factory=list)
    samples: list[Json] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Experiment:
    """Everything one page shows. `notices` say, in words, what was missing or could not be read."""

    title: str
    arms: list[Arm]
    task: str | None
    seed: int | None = None
    machine: str | None = None
    commands: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        """All tasks that any arm was evaluated on; the one the page is about first."""
        found = sorted({task for arm in self.arms for task in arm.evaluations})
        return sorted(found, key=lambda task: task != self.task)


def number(value: object) -> float | None:
    """`value` as a finite float, or None: NaN, infinities, text and absent metrics are all "not measured"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def printable(value: Any) -> Any:
    """`value` with every string in it, keys too, made writable as UTF-8 and free of control characters."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {printable(str(key)): printable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [printable(entry) for entry in value]
    return value


def read_experiment(folder: Path) -> Experiment:
    """The experiment in `folder`: a quickstart folder (with `quickstart.json`) or a single run folder.

    Raises DataError, naming the folder and what was expected, if it is neither.
    """
    if (folder / "quickstart.json").is_file():
        return _read_quickstart(folder)
    if any((folder / name).exists() for name in ("metrics.jsonl", "eval", "config.yaml")):
        notices: list[str] = []
        arm = _read_arm(folder, folder.resolve().name, folder.resolve().name, None, notices)
        task = next(iter(arm.evaluations), None)
        return Experiment(title=arm.label, arms=[arm], task=task, notices=notices)
    raise DataError(
        f"{folder}: nothing to report; expected quickstart.json (from `ral quickstart`) or a run folder with "
        "metrics.jsonl, config.yaml or eval/. Give the folder that training or evaluation wrote to"
    )


def _read_quickstart(folder: Path) -> Experiment:
    path = folder / "quickstart.json"
    notices: list[str] = []
    index = _read_json(path, notices)
    entries = index.get("arms")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: field 'arms': expected a list of arms, got {entries!r}; run `ral quickstart` again")
    seconds = index.get("seconds")
    seconds = seconds if isinstance(seconds, dict) else {}
    arms = []
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise DataError(f"{path}: arms[{row}]: expected an object with 'name', 'label' and 'path', got {entry!r}")
        name = entry["name"]
        arm_folder = folder / str(entry.get("path", name))
        arms.append(_read_arm(arm_folder, name, str(entry.get("label", name)), number(seconds.get(name)), notices))
    task = index.get("task")
    seed = index.get("seed")
    return Experiment(
        title="quickstart",
        arms=arms,
        task=task if isinstance(task, str) else next((t for arm in arms for t in arm.evaluations), None),
        seed=seed if isinstance(seed, int) else None,
        machine=str(index["machine"]) if index.get("machine") else None,
        commands=[str(command) for command in index.get("commands") or []],
        notices=notices,
    )


def _read_arm(folder: Path, name: str, label: str, seconds: float | None, notices: list[str]) -> Arm:
    label = clip(printable(label), MAX_LABEL)
    if not folder.is_dir():
        notices.append(f"{label}: its folder {folder.name} does not exist.")
        return Arm(name, label, folder, seconds=seconds)
    evaluations = {}
    for summary in sorted(folder.glob("eval/*/summary.json")):
        found, remarks = read_evaluation(summary.parent)
        evaluations[found.task] = found
        notices += remarks
    return Arm(
        name=name,
        label=label,
        folder=folder,
        config=_read_yaml(folder / "config.yaml", notices),
        environment=_read_json(folder / "environment.json", notices),
        metrics=[row for row in _read_rows(folder / "metrics.jsonl", notices) if number(row.get("step")) is not None],
        samples=_read_rows(folder / "samples.jsonl", notices),
        evaluations=evaluations,
        seconds=seconds,
    )


def read_evaluation(folder: Path) -> tuple[Evaluation, list[str]]:
    """The evaluation in `folder`, and what of it could not be read, in words."""
    notices: list[str] = []
    rows = _read_rows(folder / "items.jsonl", notices)
    items = {str(row.get("id", index)): row for index, row in enumerate(rows)}
    summary = _read_json(folder / "summary.json", notices)
    return Evaluation(printable(folder.resolve().name), folder, summary, items), notices


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""


def _place(path: Path) -> str:
    """The end of `path`, enough to find the file in its folder without printing where on the machine that lies."""
    return "/".join(path.parts[-3:])


def _read_json(path: Path, notices: list[str]) -> Json:
    text = _text(path)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        notices.append(f"{_place(path)} is not valid JSON ({error}); it was left out.")
        return {}
    return printable(value) if isinstance(value, dict) else {}


def _read_rows(path: Path, notices: list[str]) -> list[Json]:
    rows, broken = [], []
    # A file that is still being written ends in half a line, so a bad line must not cost the others.
    for line_number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            rows.append(printable(value))
        else:
            broken.append(line_number)
    if broken:
        where = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        notices.append(f"{_place(path)}: {len(broken)} unreadable line(s) left out (line {where}).")
    return rows


def _read_yaml(path: Path, notices: list[str]) -> Json:
    try:
        value = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        notices.append(f"{_place(path)} is not valid YAML ({str(error).splitlines()[0]}); it was left out.")
        return {}
    return printable(value) if isinstance(value, dict) else {}
