"""Compares two evaluations of a task item by item: whether that is valid, and which settings differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral.errors import DataError
from ral.evaluate.items import Item, read_items
from ral.runs.names import EVALUATION, EVALUATIONS, ITEMS, evaluations
from ral.statistics import compare_tasks

#: Of what `settings.json` holds: what is no setting, or leaves answers and scores as they are.
_NO_SETTING = {"task", "data", "weights", "layer", "probes", "show"}


@dataclass(frozen=True)
class Evaluated:
    """The items of one evaluation by id, under the `name` that errors call it by, and its settings, where they are known."""

    name: str
    items: Mapping[str, Item]
    settings: Mapping[str, Any] | None


def read_evaluated(folder: Path) -> Evaluated:
    """The evaluation in `folder`. Raises DataError for files that cannot be read and for two items of one id."""
    items: dict[str, Item] = {}
    for item in read_items(folder / ITEMS):
        if item.id in items:
            raise DataError(f"{folder / ITEMS}: item {item.id!r} occurs more than once; ids must be unique")
        items[item.id] = item
    return Evaluated(str(folder), items, read_settings(folder))


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the evaluation in `folder`; None where they were not kept. Raises DataError."""
    file = folder / EVALUATION
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}); evaluate again with --overwrite") from error
    if not isinstance(settings, dict):
        raise DataError(f"{file}: expected the settings of an evaluation, found {type(settings).__name__}")
    return settings


def refuse_unlike(a: Evaluated, b: Evaluated) -> None:
    """Raise DataError unless a difference of scores between the two can be one of the models.

    Both have to be scored by the same scorer, and the items that both have must ask the same question with the same solution.
    """
    scorers = [one.settings.get("scorer") if one.settings else None for one in (a, b)]
    if None not in scorers and scorers[0] != scorers[1]:
        raise DataError(
            f"{a.name} was scored by {scorers[0]}, {b.name} by {scorers[1]}: their difference would be one of the scorers. "
            f"Evaluate one of them again with --scorer {scorers[0]} or {scorers[1]} and --overwrite"
        )
    for id_, item in a.items.items():
        other = b.items.get(id_)
        for field in ("question", "solution"):
            if other is not None and getattr(item, field) != getattr(other, field):
                raise DataError(
                    f"item {id_!r}: {field} is {getattr(item, field)!r:.100} in {a.name}, but {getattr(other, field)!r:.100} in "
                    f"{b.name}: the two were evaluated on different data. Evaluate both on the same"
                )


def asked_differently(a: Evaluated, b: Evaluated) -> str:
    """A sentence on the settings that differ, as these may be what the difference comes from; "" where none do."""
    if a.settings is None or b.settings is None:
        unknown = " and ".join(one.name for one in (a, b) if one.settings is None)
        return f"How {unknown} was asked and scored is not known: {EVALUATION} is missing."
    both = [name for name in a.settings if name in b.settings and name not in _NO_SETTING]  # older ones lack some
    differing = [
        f"{name} {json.dumps(a.settings[name])} and {json.dumps(b.settings[name])}"
        for name in both
        if a.settings[name] != b.settings[name]
    ]
    return f"They were asked with different settings: {'; '.join(differing)}." if differing else ""


def compare_runs(run_a: Path, run_b: Path) -> list[str]:
    """A sentence on every task that two runs were both evaluated on, p-values adjusted for their number.

    Raises DataError for runs without a task in common, and for evaluations that cannot be read or compared.
    """
    found_a, found_b = (_evaluations(run) for run in (run_a, run_b))
    common = [task for task in found_a if task in found_b]
    if not common:
        raise DataError(f"{run_a} ({', '.join(found_a)}) and {run_b} ({', '.join(found_b)}) have no task in common.")
    pairs = {task: (read_evaluated(found_a[task]), read_evaluated(found_b[task])) for task in common}
    for a, b in pairs.values():
        refuse_unlike(a, b)
    outcomes = {
        task: ([item.outcome for item in a.items.values()], [item.outcome for item in b.items.values()])
        for task, (a, b) in pairs.items()
    }
    return [
        " ".join(filter(None, (result.sentence(str(run_a), str(run_b), task), asked_differently(*pairs[task]))))
        for task, result in compare_tasks(outcomes).items()
    ]


def _evaluations(run: Path) -> dict[str, Path]:
    if not (found := evaluations(run)):
        raise DataError(f"{run}: no evaluation found; expected {EVALUATIONS}/<task>/{ITEMS}. Evaluate the model first.")
    return found
