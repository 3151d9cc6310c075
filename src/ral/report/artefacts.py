"""Reads the files of one run or evaluation into typed values, and makes every text safe to print.

A report is often wanted for a run that is unfinished, was killed, or was never evaluated. What cannot be read becomes a
notice that the page shows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ral.errors import DataError
from ral.evaluate.items import Item
from ral.report.run_html import evaluation_html, run_html
from ral.runs.names import (
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    EVALUATIONS,
    HEADS,
    ITEMS,
    LOOKS,
    METRICS,
    SAMPLES,
    SUMMARY,
)

Json = dict[str, Any]

#: Lone surrogates cannot be written as UTF-8, and control characters have no place on a page.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Evaluation:
    """`eval/<task>/`: the summary and its items by id, in the order of the file. `folder` is where images lie; `settings` say
    how the model was asked, None where that is not known."""

    task: str
    folder: Path
    summary: Json
    items: dict[str, Item]
    settings: Json | None = None

    def _repr_html_(self) -> str:
        return evaluation_html(self.task, self.summary, list(self.items.values()))


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, or one checkpoint that was evaluated: a folder, and what was found there.

    `looks` are the items of `looks/items.jsonl`, each with its step; `seed` is that of its settings; `seconds` its wall-clock time.
    """

    folder: Path
    seed: int | None = None
    config: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    metrics: list[Json] = field(default_factory=list)
    samples: list[Json] = field(default_factory=list)
    looks: list[Item] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: float | None = None

    def _repr_html_(self) -> str:
        return run_html(str(self.folder), self.config, self.metrics, list(self.evaluations.values()))

    @property
    def trained(self) -> bool:
        return bool(self.config or self.metrics)


def number(value: object) -> float | None:
    """`value` as a finite float, or None: NaN, infinities, text and absent metrics are all "not measured"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def count(value: object) -> int | None:
    """`value` as a whole number, None where it is none."""
    found = number(value)
    return None if found is None else int(found)


def numbers(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """The values of `key` in those rows that have it."""
    return [value for row in rows if (value := number(row.get(key))) is not None]


def printable(value: Any) -> Any:
    """`value` with every string in it, keys too, made writable as UTF-8 and free of control characters."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {printable(str(key)): printable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [printable(entry) for entry in value]
    return value


def read_run(folder: Path, notices: list[str], label: str = "") -> Run:
    if not folder.is_dir():
        notices.append(f"{label}: its folder {folder.name} does not exist.")
        return Run(folder)
    evaluations = {}
    for summary in sorted(folder.glob(f"{EVALUATIONS}/*/{SUMMARY}")):
        found, remarks = read_evaluation(summary.parent)
        evaluations[found.task] = found
        notices += remarks
    config = _read_yaml(folder / CONFIG, notices)
    if isinstance(asked := config.get("attention_heads"), dict) and (measured := read_json(folder / HEADS, notices)):
        asked["measured"] = measured.get("heads")
    seed = config.get("seed")
    return Run(
        folder=folder,
        seed=seed if isinstance(seed, int) else None,
        config=config,
        environment=read_json(folder / ENVIRONMENT, notices),
        metrics=_steps(_read_rows(folder / METRICS, notices)),
        samples=_steps(_read_rows(folder / SAMPLES, notices)),
        looks=[item for item in _read_items(folder / LOOKS / ITEMS, notices) if item.step is not None],
        evaluations=evaluations,
    )


def _steps(rows: list[Json]) -> list[Json]:
    return [row for row in rows if number(row.get("step")) is not None]


def read_evaluation(folder: Path) -> tuple[Evaluation, list[str]]:
    """The evaluation in `folder`, and what of it could not be read, in words."""
    notices: list[str] = []
    items = {item.id: item for item in _read_items(folder / ITEMS, notices)}
    summary = read_json(folder / SUMMARY, notices)
    settings = read_json(folder / EVALUATION, notices) or None
    return Evaluation(printable(folder.resolve().name), folder, summary, items, settings), notices


def _read_items(path: Path, notices: list[str]) -> Iterator[Item]:
    """The lines that are items; of the others a notice says what is wrong with the first, and how many there are."""
    refused = []
    for line_number, row in _read_lines(path, notices):
        try:
            yield Item.from_json(row, f"{place(path)}:{line_number}")
        except DataError as error:
            refused.append(str(error))
    if refused:
        more = f" So it is with {len(refused) - 1} more." if len(refused) > 1 else ""
        notices.append(f"{refused[0]}; the item was left out.{more}")


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""


def place(path: Path, parts: int = 3) -> str:
    """The end of `path`, enough to find the file in its folder without printing where on the machine that lies."""
    return "/".join(path.parts[-parts:])


def read_json(path: Path, notices: list[str]) -> Json:
    text = _text(path)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        notices.append(f"{place(path)} is not valid JSON ({error}); it was left out.")
        return {}
    return printable(value) if isinstance(value, dict) else {}


def _read_rows(path: Path, notices: list[str]) -> list[Json]:
    return [row for _, row in _read_lines(path, notices)]


def _read_lines(path: Path, notices: list[str]) -> list[tuple[int, Json]]:
    """The objects of a JSONL file with their line numbers."""
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
            rows.append((line_number, printable(value)))
        else:
            broken.append(line_number)
    if broken:
        where = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        notices.append(f"{place(path)}: {len(broken)} unreadable line(s) left out (line {where}).")
    return rows


def _read_yaml(path: Path, notices: list[str]) -> Json:
    try:
        value = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        notices.append(f"{place(path)} is not valid YAML ({str(error).splitlines()[0]}); it was left out.")
        return {}
    return printable(value) if isinstance(value, dict) else {}
