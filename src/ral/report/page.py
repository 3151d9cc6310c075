"""Assembles the page: data, findings, charts and gallery in one file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral.files import atomic_write_text
from ral.report import charts, findings, geometry
from ral.report.artefacts import number
from ral.report.differences import differences, start_index
from ral.report.experiment import Arm, Experiment, read_experiment
from ral.report.gallery import OUTCOMES, Exhibit, Gallery, build_gallery
from ral.report.headline import headline
from ral.report.heads import head_maps, hidden
from ral.report.items import Table, failures
from ral.report.looks import film, rollouts
from ral.report.templating import render
from ral.runs.names import REPORT


@dataclass(frozen=True)
class Whisker:
    """One line of the accuracy figure, positions in percent of its axis."""

    row: findings.TableRow
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class SettingsTable:
    """`differing` and `common` settings: (name, value of each arm) and (name, the one value)."""

    labels: list[str]
    differing: list[tuple[str, list[str]]]
    common: list[tuple[str, str]]


def write_report(*folders: Path, output: Path | None = None, running: bool = False) -> Path:
    """Writes the page of `folders`, quickstart and run folders in any number, and returns its path.

    The page is one file without network access. Whatever is missing is said on it. `output` is by default `report.html`
    in the folder, and of several folders in the current one. `running` says that the runs go on: the page then reloads
    itself until a page without it takes its place.

    Raises DataError for a folder that holds nothing to report.
    """
    folders = tuple(Path(folder) for folder in folders)
    experiment = read_experiment(*folders, running=running)
    arms, tasks = experiment.arms, experiment.tasks
    task = experiment.task if experiment.task in tasks else next(iter(tasks), None)
    compared = differences(experiment, task)
    table = findings.table_of(experiment, task, compared)
    start = start_index(arms)
    gallery = build_gallery(arms, task) if task else Gallery([], {}, 0)
    training = charts.training_charts(arms, charts.CURVES)
    more = charts.training_charts(arms, charts.MORE_CURVES)
    layers = charts.layer_charts(arms, task, [_trained_layers(arm) for arm in arms]) if task else []
    looking = charts.looking_charts(arms)
    failed = failures(arms, task) if task else Table([], [], [])
    page = render(
        "report.html.j2",
        experiment=experiment,
        task=task,
        other_tasks=[(other, findings.table_of(experiment, other)) for other in tasks if other != task],
        table=table,
        headline=headline(experiment, task, table, compared),
        start=start,
        looking=findings.looking(table),
        comparisons=compared,
        caveats=findings.caveats(experiment, task, table),
        whiskers=_whiskers(table),
        majority=findings.majority(experiment, task),
        gallery=gallery,
        outcome_names=OUTCOMES,
        example=_example(gallery, start),
        film=film(arms),
        looking_charts=looking,
        failed=failed,
        training=training,
        more=more,
        layers=layers,
        heads=head_maps(arms, task) if task else [],
        hidden=hidden(arms, task) if task else [],
        chart_data={chart.key: chart.data() for chart in (*looking, *training, *more, *layers)},
        rollouts=rollouts(arms),
        settings=_settings([arm for arm in arms if arm.first.config]),
        environments=_environments(experiment),
        area=geometry,
        written=round(time.time()),
    )
    path = output or (folders[0] if len(folders) == 1 else Path()) / REPORT
    atomic_write_text(path, page)
    return path


def _whiskers(table: list[findings.TableRow]) -> list[Whisker]:
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
    layers = arm.first.config.get("attention_layers")
    trained = (number(arm.first.config.get("attention_coef")) or 0.0) > 0
    return [int(layer) for layer in layers if isinstance(layer, int)] if trained and isinstance(layers, list) else []


def _settings(arms: list[Arm]) -> SettingsTable:
    flat = []
    for arm in arms:
        seeds = [str(run.seed) for run in arm.runs if run.seed is not None]
        flat.append(dict(_flatten(arm.first.config)) | ({"seed": ", ".join(seeds)} if seeds else {}))
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    values = {name: [settings.get(name, "not set") for settings in flat] for name in names}
    return SettingsTable(
        labels=[arm.label for arm in arms],
        differing=[(name, found) for name, found in values.items() if len(set(found)) > 1],
        common=[(name, found[0]) for name, found in values.items() if len(set(found)) == 1],
    )


def _environments(experiment: Experiment) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """(labels of the arms, settings) for each different environment."""
    found: list[tuple[list[str], list[tuple[str, str]]]] = []
    for arm in experiment.arms:
        for run in arm.runs:
            flat = _flatten(run.environment)
            same = next((labels for labels, other in found if other == flat), None)
            if flat and same is None:
                found.append(([arm.label], flat))
            elif same is not None and arm.label not in same:
                same.append(arm.label)
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
