"""Summary figures of one evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ral.data.record import Record
from ral.evaluate.grounding import Grounding, mean_grounding
from ral.evaluate.items import Item, Json
from ral.evaluate.probes import summarise as summarise_probes
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks import Scored, Task
from ral.statistics import Interval, mean_interval, proportion_interval


@dataclass(frozen=True)
class Summary:
    """The figures of one evaluation.

    accuracy: mean score in [0, 1], unparsed answers counted as 0, with its 95 % interval `ci` (Wilson's for right-or-wrong
    items that share nothing, else a bootstrap over clusters). majority: accuracy of the best constant answer. grounding:
    means at the row that predicts the answer in the layer `settings["layer"]` (and its `settings["heads"]`), over items with boxes
    that the model saw, and an answer (None if there are none); measured: how many these are of the `grounded` items, which say where
    their evidence is; layers: the same for every decoder layer, over all heads, None for a layer without
    attention; probes: what `settings["probes"]` asked for, over the
    same items. figures: the benchmark's own, by name. main: the figure a paper quotes, where it is not the accuracy, as
    its name, value and highest value; note: what a reader of it must know. tokens: mean length of the completions, on which every measure of
    looking depends.
    """

    model: str
    task: str
    n: int
    accuracy: float
    ci: tuple[float, float]
    unparsed: int
    truncated: int
    majority: float
    grounding: Grounding | None
    layers: tuple[Grounding | None, ...] | None
    probes: Json | None
    figures: dict[str, float]
    settings: dict[str, Any]
    main: tuple[str, float, float] | None = None
    note: str = ""
    tokens: float | None = None
    measured: int | None = None
    grounded: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        return {
            **vars(self),
            "grounding": None if self.grounding is None else self.grounding.as_dict(),
            "layers": None if self.layers is None else [layer and layer.as_dict() for layer in self.layers],
        }

    def sentence(self) -> str:
        """The figures in words: the one a paper quotes first, and its note."""
        low, high = (f"{100 * end:.1f}" for end in self.ci)
        main = "" if self.main is None else f"{_main(*self.main)}; "
        found = (
            f"{self.task}: {main}{self.accuracy:.1%} of {self.n} items right (95 % interval {low} to {high}; {self.unparsed} "
            f"unparsed, {self.truncated} truncated; one answer to everything: {self.majority:.1%})."
        ) + (f" {self.note}" if self.note else "")
        if self.grounding is None:
            return (
                found if not self.grounded else f"{found} Where it looked: none of {self.grounded} could be measured."
            )
        length = "" if self.tokens is None else f"; completions have {self.tokens:.1f} tokens"
        return (
            f"{found} In layer {self.settings['layer']}{_heads(self.settings)} the row that predicts the answer has {self.grounding.mass:.1%} of "
            f"its attention to the image, video or document on the evidence ({self.grounding.lift:.1f} times chance), its "
            f"maximum there in {self.grounding.pointing:.1%}{self._left_out()}{length}."
        )

    def _left_out(self) -> str:
        """Of how many items the grounding is, where it is not of all that say where their evidence is."""
        if self.measured == self.grounded:
            return ""
        return (
            f" (over {self.measured} of {self.grounded} items with evidence; the others have no answer, or the model was not shown "
            "their evidence)"
        )


def _heads(settings: dict[str, Any]) -> str:
    heads = settings.get("heads")
    return f", heads {', '.join(map(str, heads))}," if heads else ""


def _main(name: str, value: float, highest: float) -> str:
    return f"{name} {value:.1%}" if highest == 1 else f"{name} {value:,.1f} of {highest:,.0f}"


def summarise(
    model: str, task: Task, records: Sequence[Record], items: Sequence[Item], settings: EvalSettings
) -> Summary:
    """The figures of `items`, one for each of `records`, in their order."""
    scored = [
        task.judge(replace(record, solution=item.solution), item.completion, mode=settings.scorer, think=settings.think)
        for record, item in zip(records, items, strict=True)
    ]
    figures = task.aggregate(scored)
    interval = _interval(scored)
    layers = [item.layers for item in items if item.layers is not None]
    means = [_mean([one[i] for one in layers]) for i in range(len(layers[0]))] if layers else None
    lengths = [item.tokens for item in items if item.tokens is not None]
    return Summary(
        model=model,
        task=task.name,
        n=len(items),
        accuracy=figures["accuracy"],
        ci=(interval.low, interval.high),
        unparsed=int(figures["unparsed"]),
        truncated=sum(item.truncated for item in items),
        majority=task.majority(records)[1],
        grounding=_mean([item.grounding for item in items]),
        layers=tuple(means) if means else None,
        probes=summarise_probes([item.probes for item in items if item.probes]),
        figures={name: value for name, value in figures.items() if name not in ("accuracy", "n", "unparsed")},
        settings=asdict(settings),
        main=(task.main, figures[task.main], task.highest)
        if task.main != "accuracy" and task.main in figures
        else None,
        note=task.note,
        tokens=float(np.mean(lengths)) if lengths else None,
        measured=sum(item.grounding is not None for item in items),
        grounded=sum(record.grounded for record in records),
    )


def _mean(items: Sequence[Grounding | None]) -> Grounding | None:
    return mean_grounding(items).mean


def _interval(scored: Sequence[Scored]) -> Interval:
    correct = [item.correct for item in scored]
    clusters = [item.cluster or f"\0{item.id}" for item in scored]
    groups = len(set(clusters))
    alone = groups == len(scored) and np.isin(correct, (0.0, 1.0)).all()
    if alone or set(correct) in ({0.0}, {1.0}):  # a bootstrap of equal scores has no width
        return proportion_interval(round(sum(correct) * groups / len(correct)), groups)
    return mean_interval(correct, clusters)
