"""Puts the page together: what was read, what may be said of it, charts and gallery, into one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ral.files import atomic_write_text
from ral.report import charts, findings
from ral.report.artefacts import Arm, Experiment, number, read_experiment
from ral.report.gallery import OUTCOMES, Exhibit, Gallery, build_gallery
from ral.report.templating import render


@dataclass(frozen=True)
class Whisker:
    """One line of the accuracy figure, positions in percent of its axis."""

    row: findings.Row
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Settings:
    """`differing` and `common` settings: (name, value of each arm) and (name, the one value)."""

    labels: list[str]
    differing: list[tuple[str, list[str]]]
    common: list[tuple[str, str]]


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one prompt at one step of one arm's training, best first."""

    step: int
    question: str
    solution: str
    samples: list[dict[str, Any]]


def write_report(folder: Path) -> Path:
    """Writes `report.html` into `folder`, a quickstart folder or a single run folder, and returns its path.

    The page is one file without network access. Whatever is missing is said on the page; raises DataError only if the
    folder holds nothing to report.
    """
    folder = Path(folder)
    experiment = read_experiment(folder)
    tasks = experiment.tasks
    task = experiment.task if experiment.task in tasks else next(iter(tasks), None)
    table = findings.rows(experiment, task)
    gallery = build_gallery(experiment.arms, task) if task else Gallery([], {}, 0)
    training = charts.training_charts(experiment.arms, charts.CURVES)
    more = charts.training_charts(experiment.arms, charts.MORE_CURVES)
    layers = charts.layer_charts(
        [(i, arm.label, arm.evaluations[task], _trained_layers(arm)) for i, arm in enumerate(experiment.arms)
         if task in arm.evaluations]
    ) if task else []  # fmt: skip
    page = render(
        "report.html.j2",
        experiment=experiment,
        task=task,
        other_tasks=[(other, findings.rows(experiment, other)) for other in tasks if other != task],
        table=table,
        headline=findings.headline(experiment, table),
        start=findings.start_index(experiment.arms),
        looking=findings.looking(table),
        comparisons=findings.comparisons(experiment, task),
        caveats=findings.caveats(experiment, task, table),
        whiskers=_whiskers(table),
        majority=findings.majority(experiment, task),
        gallery=gallery,
        outcome_names=OUTCOMES,
        example=_example(gallery, findings.start_index(experiment.arms)),
        training=training,
        more=more,
        layers=layers,
        chart_data={chart.key: chart.data() for chart in (*training, *more, *layers)},
        rollouts=[(index, arm.label, _rollouts(arm)) for index, arm in enumerate(experiment.arms) if arm.samples],
        settings=_settings([arm for arm in experiment.arms if arm.config]),
        environments=_environments(experiment),
        area=charts,
    )
    path = folder / "report.html"
    atomic_write_text(path, page)
    return path


def _whiskers(table: list[findings.Row]) -> list[Whisker]:
    drawn = []
    for row in table:
        if row.accuracy is not None:
            low, high = row.interval or (row.accuracy, row.accuracy)
            drawn.append(Whisker(row, *(round(100 * min(max(x, 0.0), 1.0), 2) for x in (row.accuracy, low, high))))
    return drawn


def _example(gallery: Gallery, start: int | None) -> tuple[Exhibit, list[int]] | None:
    """The first exhibit that training fixed, with the looks of the start and of the last arm that got it right.

    One whose look now falls into the true box goes before the others, as a picture of what is meant.
    """
    found = []
    for exhibit in gallery.exhibits:
        seen = [i for i, look in enumerate(exhibit.looks) if look.tile and look.tile.heat]
        before = [i for i in seen if exhibit.looks[i].arm == start]
        after = [i for i in seen if exhibit.looks[i].arm != start and (exhibit.looks[i].correct or 0.0) >= 0.5]
        if exhibit.outcome == "fixed" and before and after:
            found.append((exhibit, [before[0], after[-1]]))
    return min(found, key=lambda example: not example[0].looks[example[1][1]].inside, default=None)


def _trained_layers(arm: Arm) -> list[int]:
    layers = arm.config.get("attention_layers")
    trained = (number(arm.config.get("attention_coef")) or 0.0) > 0
    return [int(layer) for layer in layers if isinstance(layer, int)] if trained and isinstance(layers, list) else []


def _rollouts(arm: Arm) -> list[Rollouts]:
    """The first prompt's rollouts at the first, a middle and the last step that were kept."""
    steps = sorted({int(step) for row in arm.samples if (step := number(row.get("step"))) is not None})
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    groups = []
    for step in chosen:
        rows = [row for row in arm.samples if number(row.get("step")) == step]
        group = [row for row in rows if row.get("id") == rows[0].get("id")]
        samples = [
            {
                "completion": str(row.get("completion", "")),
                "reward": number(row.get("reward")),
                "advantage": number(row.get("advantage")),
            }
            for row in group
        ]
        samples.sort(key=lambda row: -np.inf if row["reward"] is None else row["reward"], reverse=True)
        first = rows[0]
        groups.append(Rollouts(step, str(first.get("question", "")), str(first.get("solution", "")), samples))
    return groups


def _settings(arms: list[Arm]) -> Settings:
    flat = [dict(_flatten(arm.config)) for arm in arms]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    values = {name: [settings.get(name, "not set") for settings in flat] for name in names}
    return Settings(
        labels=[arm.label for arm in arms],
        differing=[(name, found) for name, found in values.items() if len(set(found)) > 1],
        common=[(name, found[0]) for name, found in values.items() if len(set(found)) == 1],
    )


def _environments(experiment: Experiment) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """(labels of the arms, settings) for each different environment."""
    found: list[tuple[list[str], list[tuple[str, str]]]] = []
    for arm in experiment.arms:
        flat = _flatten(arm.environment)
        same = next((labels for labels, other in found if other == flat), None)
        if same is not None:
            same.append(arm.label)
        elif flat:
            found.append(([arm.label], flat))
    return found


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value as text)."""
    flat = []
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            flat += _flatten(entry, f"{prefix}{key}.")
        elif isinstance(entry, list | tuple):
            flat.append((prefix + key, ", ".join(map(str, entry)) or "none"))
        else:
            flat.append((prefix + key, "none" if entry is None else str(entry)))
    return flat
