"""Reads what runs and evaluations left on disk into typed values; every text that a page may show is made printable here.

A report is often wanted for a run that is unfinished, was killed, or was never evaluated. What cannot be read becomes a
notice that the page shows; only a folder in which there is nothing to report is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ral.errors import DataError
from ral.report.templating import clip
from ral.runs.names import (
    CONFIG,
    ENVIRONMENT,
    EVALUATIONS,
    ITEMS,
    LOOKS,
    METRICS,
    QUICKSTART,
    SAMPLES,
    SUMMARY,
)

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


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, or one checkpoint that was evaluated: a folder, and what was found there.

    `looks` are rows of `looks/items.jsonl`; `seed` is that of its settings; `seconds` its wall-clock time.
    """

    folder: Path
    seed: int | None = None
    config: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    metrics: list[Json] = field(default_factory=list)
    samples: list[Json] = field(default_factory=list)
    looks: list[Json] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def trained(self) -> bool:
        return bool(self.config or self.metrics)


@dataclass(frozen=True)
class Arm:
    """One model of the comparison: its runs (at least one), which differ in their seed alone, in the order of their seeds.

    `label` stands in every table, legend and sentence of the page, and is short.
    """

    name: str
    label: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        """The run that is shown where only one can be: images, completions, settings."""
        return self.runs[0]

    def evaluated(self, task: str | None) -> list[Run]:
        """The runs that were evaluated on `task`."""
        return [run for run in self.runs if task in run.evaluations]


@dataclass(frozen=True)
class Experiment:
    """Everything one page shows. `notices` say, in words, what was missing or could not be read; `running`: it goes on."""

    title: str
    arms: list[Arm]
    task: str | None
    machine: str | None = None
    commands: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    running: bool = False

    @property
    def tasks(self) -> list[str]:
        """All tasks that any run was evaluated on; the one the page is about first."""
        found = sorted({task for arm in self.arms for run in arm.runs for task in run.evaluations})
        return sorted(found, key=lambda task: task != self.task)

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs."""
        return sorted({run.seed for arm in self.arms for run in arm.runs if run.seed is not None})


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


def read_experiment(*folders: Path, running: bool = False) -> Experiment:
    """The experiment in `folders`: quickstart folders (with `quickstart.json`) and run folders, in any number.

    Runs that differ in their seed alone become one arm. Raises DataError, naming the folder and what was expected, for a
    folder that is neither.
    """
    notices: list[str] = []
    found: list[Arm] = []
    tasks, machines, commands = [], [], []
    for folder in folders:
        if (folder / QUICKSTART).is_file():
            quickstart = _read_quickstart(folder, notices)
            found += quickstart.arms
            tasks.append(quickstart.task)
            machines.append(quickstart.machine)
            commands += quickstart.commands
        elif any((folder / name).exists() for name in (METRICS, EVALUATIONS, CONFIG)):
            name = _name(folder.resolve())
            run = _read_run(folder, notices)
            found.append(Arm(name, _label(name), [run]))
            commands += _repeated(run)
        else:
            raise DataError(
                f"{folder}: nothing to report; expected {QUICKSTART} (from `ral quickstart`) or a run folder with "
                f"{METRICS}, {CONFIG} or {EVALUATIONS}/. Give the folder that training or evaluation wrote to"
            )
    arms = found if len(found) == 1 else grouped(found, notices)
    evaluated = (task for arm in arms for run in arm.runs for task in run.evaluations)
    return Experiment(
        title=arms[0].label if len(arms) == 1 else "comparison",
        arms=arms,
        task=next((task for task in tasks if task), None) or next(evaluated, None),
        machine="; ".join(dict.fromkeys(machine for machine in machines if machine)) or None,
        commands=list(dict.fromkeys(commands)),
        notices=[] if running else list(dict.fromkeys(notices)),  # what a run that goes on lacks is still to come
        running=running,
    )


#: Settings that do not tell one arm from another.
_OF_ONE_RUN = {"seed", "data_seed", "output_dir", "logging_dir", "run_name", "look_steps", "look_items", "disable_tqdm"}


def grouped(found: Sequence[Arm], notices: list[str]) -> list[Arm]:
    """`found` arms of one run each, those of equal settings put together; what cannot be put together is a notice.

    Runs without settings are checkpoints: those of one label are taken to be one model.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in found:
        config = {key: value for key, value in arm.first.config.items() if key not in _OF_ONE_RUN}
        groups.setdefault(
            json.dumps(config, sort_keys=True, default=str) if config else f"checkpoint {arm.label}", []
        ).append(arm)
    arms = []
    for group in groups.values():
        runs: dict[int | None, Run] = {}
        for run in sorted((arm.first for arm in group), key=lambda run: (run.seed is None, run.seed or 0)):
            seed = run.seed if run.trained else None
            if seed in runs and (run.trained or _scores(run) != _scores(runs[seed])):
                which = "checkpoint" if seed is None else f"run with seed {seed}"
                notices.append(f"{_place(run.folder)}: another {which} of {group[0].label}; the first one is shown.")
            runs.setdefault(seed, run)
        label = _without_seed(group[0]) if len(runs) > 1 else group[0].label
        arms.append(Arm(group[0].name, label, list(runs.values())))
    return _told_apart(arms)


def _scores(run: Run) -> Json:
    return {task: evaluation.summary.get("accuracy") for task, evaluation in run.evaluations.items()}


_SEED = re.compile(r"[-_. ]*(?:seed|s)?[-_. ]*(\d+)", re.IGNORECASE)


def _name(folder: Path) -> str:
    """The folder's name; where that is no more than a seed, as in `grpo/seed-0`, the name of the folder it lies in."""
    return folder.parent.name if _SEED.fullmatch(folder.name) and folder.parent.name else folder.name


def _without_seed(arm: Arm) -> str:
    """The label of an arm of one run without the run's own seed at its end: `grpo-0` is `grpo`, but `old-4` only with seed 4."""
    found = re.search(rf"{_SEED.pattern}$", arm.label, re.IGNORECASE)
    if found is None or int(found[1]) != arm.first.seed:
        return arm.label
    return arm.label[: found.start()] or arm.label


def _told_apart(arms: list[Arm]) -> list[Arm]:
    """Arms of one label get what sets them apart behind it."""
    labels = [arm.label for arm in arms]
    result = []
    for arm in arms:
        twins = [other for other in arms if other.label == arm.label]
        differing = [
            f"{key} {value}"
            for key, value in arm.first.config.items()
            if key not in _OF_ONE_RUN and any(twin.first.config.get(key) != value for twin in twins)
        ]
        extra = ", ".join(differing) or _place(arm.first.folder)
        result.append(arm if labels.count(arm.label) == 1 else replace(arm, label=_label(f"{arm.label}, {extra}")))
    return result


def _repeated(run: Run) -> list[str]:
    """The command that repeats a run from its settings, if they are those of a recipe."""
    if not {"model", "data"} <= run.config.keys():
        return []
    command = "train" if "attention_coef" in run.config else "sft"
    return [f"ral {command} {_place(run.folder / CONFIG, 2)} --output_dir again"]


def _read_quickstart(folder: Path, notices: list[str]) -> Experiment:
    path = folder / QUICKSTART
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
        label = _label(str(entry.get("label", name)))
        run = _read_run(folder / str(entry.get("path", name)), notices, label)
        arms.append(Arm(name, label, [replace(run, seconds=number(seconds.get(name)))]))
    task = index.get("task")
    return Experiment(
        title="quickstart",
        arms=arms,
        task=task if isinstance(task, str) else None,
        machine=str(index["machine"]) if index.get("machine") else None,
        commands=[str(command) for command in index.get("commands") or []],
    )


def _label(text: str) -> str:
    return clip(printable(text), MAX_LABEL)


def _read_run(folder: Path, notices: list[str], label: str = "") -> Run:
    if not folder.is_dir():
        notices.append(f"{label}: its folder {folder.name} does not exist.")
        return Run(folder)
    evaluations = {}
    for summary in sorted(folder.glob(f"{EVALUATIONS}/*/{SUMMARY}")):
        found, remarks = read_evaluation(summary.parent)
        evaluations[found.task] = found
        notices += remarks
    config = _read_yaml(folder / CONFIG, notices)
    seed = config.get("seed")
    return Run(
        folder=folder,
        seed=seed if isinstance(seed, int) else None,
        config=config,
        environment=_read_json(folder / ENVIRONMENT, notices),
        metrics=_steps(_read_rows(folder / METRICS, notices)),
        samples=_steps(_read_rows(folder / SAMPLES, notices)),
        looks=_steps(_read_rows(folder / LOOKS / ITEMS, notices)),
        evaluations=evaluations,
    )


def _steps(rows: list[Json]) -> list[Json]:
    return [row for row in rows if number(row.get("step")) is not None]


def read_evaluation(folder: Path) -> tuple[Evaluation, list[str]]:
    """The evaluation in `folder`, and what of it could not be read, in words."""
    notices: list[str] = []
    rows = _read_rows(folder / ITEMS, notices)
    items = {str(row.get("id", index)): row for index, row in enumerate(rows)}
    summary = _read_json(folder / SUMMARY, notices)
    return Evaluation(printable(folder.resolve().name), folder, summary, items), notices


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""


def _place(path: Path, parts: int = 3) -> str:
    """The end of `path`, enough to find the file in its folder without printing where on the machine that lies."""
    return "/".join(path.parts[-parts:])


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
