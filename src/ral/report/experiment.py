"""The experiment on a page: the arms in its folders, their names, and their seeds.

Only a folder in which there is nothing to report is an error; what cannot be read becomes a notice that the page shows.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ral.errors import DataError
from ral.report.artefacts import Json, Run, number, place, printable, read_json, read_run
from ral.report.templating import clip
from ral.runs.names import CONFIG, EVALUATIONS, METRICS, QUICKSTART

MAX_LABEL = 60


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
            run = read_run(folder, notices)
            found.append(Arm(name, _label(name), [run]))
            commands += _repeated(run)
        else:
            raise DataError(
                f"{folder}: nothing to report; expected {QUICKSTART} (from `ral quickstart`) or a run folder with "
                f"{METRICS}, {CONFIG} or {EVALUATIONS}/. Give the folder that training or evaluation wrote to"
            )
    arms = found if len(found) == 1 else grouped(found, notices)
    return Experiment(
        title=arms[0].label if len(arms) == 1 else "comparison",
        arms=arms,
        task=next((task for task in tasks if task), None) or _most_evaluated(arms),
        machine="; ".join(dict.fromkeys(machine for machine in machines if machine)) or None,
        commands=list(dict.fromkeys(commands)),
        notices=[] if running else list(dict.fromkeys(notices)),  # what a run that goes on lacks is still to come
        running=running,
    )


def _most_evaluated(arms: Sequence[Arm]) -> str | None:
    """The task that most arms were evaluated on, of several the first that is met."""
    counts = Counter(task for arm in arms for task in dict.fromkeys(t for run in arm.runs for t in run.evaluations))
    return max(counts, key=counts.__getitem__, default=None)


#: Settings that do not tell one arm from another.
_OF_ONE_RUN = {
    "seed",
    "data_seed",
    "output_dir",
    "logging_dir",
    "run_name",
    "look_steps",
    "look_items",
    "look_probes",
    "disable_tqdm",
}


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
                notices.append(f"{place(run.folder)}: another {which} of {group[0].label}; the first one is shown.")
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
    """Append the difference to the labels of arms with the same label."""
    labels = [arm.label for arm in arms]
    result = []
    for arm in arms:
        twins = [other for other in arms if other.label == arm.label]
        differing = [
            f"{key} {value}"
            for key, value in arm.first.config.items()
            if key not in _OF_ONE_RUN and any(twin.first.config.get(key) != value for twin in twins)
        ]
        extra = ", ".join(differing) or place(arm.first.folder)
        result.append(arm if labels.count(arm.label) == 1 else replace(arm, label=_label(f"{arm.label}, {extra}")))
    return result


def _repeated(run: Run) -> list[str]:
    """The command that repeats a run from its settings, if they are those of a recipe; for a shell in the folder that the page
    is written from, which is where the paths in the settings start, too."""
    if not {"model", "data"} <= run.config.keys():
        return []
    command = "train" if "attention_coef" in run.config else "sft"
    config, here = run.folder / CONFIG, Path.cwd()
    if config.absolute().is_relative_to(here):
        config = config.absolute().relative_to(here)
    return [printable(shlex.join(["ral", command, str(config), "--output_dir", "again"]))]


def _read_quickstart(folder: Path, notices: list[str]) -> Experiment:
    path = folder / QUICKSTART
    index = read_json(path, notices)
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
        run = read_run(folder / str(entry.get("path", name)), notices, label)
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
