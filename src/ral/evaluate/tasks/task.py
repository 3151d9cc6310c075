"""`Task`: records, a score for each completion, and one number per group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from ral.data.record import Record
from ral.errors import DataError
from ral.evaluate.metrics import Metric
from ral.evaluate.tasks.rows import TableRow, read_rows
from ral.rewards.answers import Mode, extract_answer


@dataclass(frozen=True)
class Scored:
    """One record as a model answered it.

    `score` is in [0, 1], or None where the answer could not be read; `prediction` is the answer's body, None where the
    completion holds none. `cluster` names the image or video that items may share; `groups` are the headings the item
    is reported under, by kind of heading.
    """

    id: str
    score: float | None
    prediction: str | None
    cluster: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def correct(self) -> float:
        """The score, with 0 for an answer that could not be read."""
        return self.score or 0.0


#: Yields the records of a task, given the place of its table and that of its media (None: the task's own).
Source = Callable[[str | Path | None, Path | None], Iterator[Record]]
#: Further figures of a benchmark, beside the accuracies every task has.
Figures = Callable[[Sequence[Scored]], dict[str, float]]


@dataclass(frozen=True)
class HubTable:
    """A benchmark's table on the hub: its id, split and sub-tables (`configs`), and how a row becomes a record."""

    hub_id: str
    split: str
    convert: Callable[[TableRow], Record]
    configs: tuple[str, ...] = ("",)

    def __call__(self, source: str | Path | None = None, media: Path | None = None) -> Iterator[Record]:
        for row in read_rows(source or self.hub_id, self.split, self.configs, media):
            yield self.convert(row)


def _no_figures(items: Sequence[Scored]) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Task:
    """A benchmark: where its records come from, how an answer is scored, and what is reported.

    groups: columns (in `Record.extra`) by whose values accuracies are reported. cluster: the column that names the
    image or video that items share ("" if none do). figures: what the benchmark reports beside accuracies; main: the
    figure a paper quotes, with `highest` as its highest value. note: what a reader of the number must know, in sentences.
    """

    name: str
    source: Source
    metric: Metric
    groups: tuple[str, ...] = ()
    cluster: str = ""
    figures: Figures = _no_figures
    main: str = "accuracy"
    note: str = ""
    highest: float = 1.0

    def records(self, source: str | Path | None = None, media: Path | None = None) -> Iterator[Record]:
        """The records, from the hub or from a local table `source`; `media` is the folder of images and videos that
        lie outside the table. Raises `DataError` naming the row and column that cannot be used."""
        return self.source(source, media)

    def score(self, record: Record, completion: str, *, mode: Mode = "compat", think: bool = False) -> float | None:
        """Score a completion in [0, 1]; None if no answer can be read from it.

        Only the answer's body is scored, found as `ral.rewards.answers.extract_answer` finds it in `mode`. `mode` is also
        that of `ral.evaluate.metrics`.
        """
        answer = extract_answer(completion, mode, think)
        return None if answer is None else self.metric(answer, record, mode)

    def judge(self, record: Record, completion: str, *, mode: Mode = "compat", think: bool = False) -> Scored:
        """`score` with everything that `aggregate` needs."""
        return Scored(
            id=record.id,
            score=self.score(record, completion, mode=mode, think=think),
            prediction=extract_answer(completion, mode, think),
            cluster=_text(record, self.cluster) if self.cluster else "",
            groups={group: _headings(record, group) for group in self.groups},
        )

    def aggregate(self, items: Iterable[Scored]) -> dict[str, float]:
        """Figures over all items; an answer that could not be read counts as wrong.

        `accuracy`; `n`; `unparsed` (the number of items without a score); per group `<group>/<value>` and
        `<group>/mean`, the mean over its values; and the benchmark's own. Raises `DataError` without items.
        """
        items = list(items)
        if not items:
            raise DataError(f"{self.name}: no items to report on")
        result: dict[str, float] = {
            "accuracy": mean(item.correct for item in items),
            "n": len(items),
            "unparsed": sum(item.score is None for item in items),
        }
        for group in self.groups:
            accuracies = accuracy_by(items, group)
            result |= {f"{group}/{value}": accuracy for value, accuracy in accuracies.items()}
            if accuracies:
                result[f"{group}/mean"] = mean(accuracies.values())
        return result | self.figures(items)

    def majority(self, records: Iterable[Record], *, candidates: int = 20) -> tuple[str, float]:
        """The one answer to everything that scores best, of the `candidates` most frequent solutions, and its accuracy."""
        records = list(records)
        if not records:
            raise DataError(f"{self.name}: no records to take a majority of")
        solutions = Counter(record.solution for record in records)
        scores = {
            solution: mean(self.metric(solution, record, "compat") or 0.0 for record in records)
            for solution, _ in solutions.most_common(candidates)
        }
        best = max(scores, key=lambda solution: scores[solution])
        return best, scores[best]


def accuracy_by(items: Iterable[Scored], group: str) -> dict[str, float]:
    """Accuracy under each value of `group`, by name of the value."""
    scores = defaultdict(list)
    for item in items:
        for value in item.groups[group]:
            scores[value].append(item.correct)
    return {value: mean(scores[value]) for value in sorted(scores)}


def _text(record: Record, column: str) -> str:
    try:
        return str(record.extra[column])
    except KeyError:
        raise DataError(f"{record.origin}: no column {column!r}, by which items share a medium") from None


def _headings(record: Record, group: str) -> tuple[str, ...]:
    value = record.extra.get(group)
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(value) for value in values if value is not None)
