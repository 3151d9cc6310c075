"""Evaluates a model on a task: answers, scores and where it looked, item by item, into a folder that can be resumed.

settings.json   what is evaluated how; a folder that says otherwise is not continued
items.jsonl     one object per item, appended batch by batch; in the order of the task once complete
media/          images of the items that are shown
summary.json    the figures over all items; its presence says that the evaluation is complete
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ral.attention import prepare_prompt
from ral.attention.models import make_capturable, pretrained, resolve_layers
from ral.data.record import Record
from ral.data.spans import Passage, answer_span, passage
from ral.data.view import View, view
from ral.errors import DataError
from ral.evaluate.answering import Answered, answer, encode, look_at_answers
from ral.evaluate.grounding import Grounding, grounding, mean_grounding
from ral.evaluate.looking import Look
from ral.evaluate.probes import Seen, neutral_record, probe, summarise
from ral.evaluate.settings import EvalSettings, parse_probes
from ral.evaluate.tasks import Scored, Task
from ral.evaluate.viewing import sheet, sheet_map
from ral.files import atomic_write_text, json_line, read_jsonl
from ral.runs.names import EVALUATION, ITEMS, MEDIA, SUMMARY
from ral.statistics import Interval, mean_interval, proportion_interval

#: Batches whose prompts are encoded together, to be grouped by length: padding is lost work.
WINDOW = 4
#: Longest side, in pixels, of an image kept to be shown.
SHOWN_SIDE = 1024

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """The figures of one evaluation.

    accuracy: mean score in [0, 1], unparsed answers counted as 0, with its 95 % interval `ci` (Wilson's for right-or-wrong
    items that share nothing, else a bootstrap over clusters). majority: accuracy of the best constant answer. grounding:
    means at the row that predicts the answer in the layer `settings["layer"]`, over items with boxes and an answer (None
    if there are none); layers: the same for every decoder layer; probes: what `settings["probes"]` asked for, over the
    same items. figures: the benchmark's own, by name.
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
    layers: tuple[Grounding, ...] | None
    probes: Row | None
    figures: dict[str, float]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As it is written to `summary.json`."""
        return {
            **vars(self),
            "grounding": None if self.grounding is None else self.grounding.as_dict(),
            "layers": None if self.layers is None else [layer.as_dict() for layer in self.layers],
        }

    def sentence(self) -> str:
        """The figures in words."""
        low, high = (f"{100 * end:.1f}" for end in self.ci)
        found = (
            f"{self.task}: {self.accuracy:.1%} of {self.n} items right (95 % interval {low} to {high}; {self.unparsed} "
            f"unparsed, {self.truncated} truncated; one answer to everything: {self.majority:.1%})."
        )
        if self.grounding is None:
            return found
        return (
            f"{found} In layer {self.settings['layer']} the row that predicts the answer has {self.grounding.mass:.1%} of "
            f"its attention to the image, video or document on the evidence ({self.grounding.lift:.1f} times chance), its "
            f"maximum there in {self.grounding.pointing:.1%}."
        )


def evaluate(
    model: nn.Module,
    processor: Any,
    task: Task,
    output: str | Path,
    *,
    settings: EvalSettings | None = None,
    name: str | None = None,
    batch_size: int = 32,
    overwrite: bool = False,
    progress: Callable[..., object] = lambda completed, total: None,
) -> Summary:
    """Answer every record of `task` greedily, score it, see where the model looked, and write all of it to `output`.

    A folder in which the same evaluation was cut off is continued; items that are there already are kept. The model is
    put into evaluation mode.

    Args:
        name: what the summary calls the model; its folder or hub id if not given.
        batch_size: items generated together. It bounds the memory; predictions do not depend on it but for rounding.
        overwrite: replace an evaluation that `output` holds.
        progress: called with `completed`, the items done, and their `total`, after every batch.

    Raises:
        DataError: records that cannot be used, two with one id, or a folder that holds another evaluation.
        ConfigError: a layer that the model does not have.
    """
    output, settings = Path(output), settings or EvalSettings()
    records = list(task.records())
    if not records:
        raise DataError(f"{task.name}: the task has no records to evaluate on")
    _check_unique(records)
    model.eval()
    settings = replace(settings, layer=resolve_layers(make_capturable(model), [settings.layer])[0])
    if overwrite:
        _remove(output)
    _claim(output, _identity(model, task, records, settings))
    done = _read_items(output / ITEMS)
    shown = {records[i * len(records) // settings.show].id for i in range(settings.show)}
    progress(completed=len(done), total=len(records))
    with open(output / ITEMS, "a", encoding="utf-8") as stream:
        for batch, inputs in _batches(processor, records, settings, batch_size, done):
            answered = answer(model, processor, batch, settings, inputs)
            for row in item_rows(model, processor, task, answered, settings, shown, output):
                if row["id"] not in done:  # a batch that was cut off is repeated whole, as its rounding depends on it
                    done[row["id"]] = row
                    stream.write(json_line(row))
            stream.flush()
            progress(completed=len(done), total=len(records))
    rows = [done[record.id] for record in records]
    atomic_write_text(output / ITEMS, "".join(map(json_line, rows)))
    summary = _summarise(name or str(pretrained(model).name_or_path), task, records, rows, settings)
    atomic_write_text(output / SUMMARY, json_line(summary.as_dict()))
    return summary


# ------------------------------------------------------------------------------------------------- the folder


def _identity(model: nn.Module, task: Task, records: Sequence[Record], settings: EvalSettings) -> Row:
    """What must be the same for two halves of an evaluation to belong together."""
    data = hashlib.blake2b(digest_size=8)
    for record in records:
        data.update(repr((record.id, record.problem, record.options, record.solution)).encode())
    return {"task": task.name, "data": data.hexdigest(), "weights": _fingerprint(model), **asdict(settings)}


def _fingerprint(model: nn.Module) -> str:
    """A digest of about 64 values of every parameter: another checkpoint in the same place is noticed, in no time."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        digest.update(name.encode())
        digest.update(values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _claim(output: Path, identity: Row) -> None:
    """Write `identity` into a new folder; refuse one that holds anything else."""
    file = output / EVALUATION
    if not file.is_file():
        if (output / ITEMS).exists() or (output / SUMMARY).exists():
            raise DataError(f"{output}: holds items but no {EVALUATION}; choose another folder or give --overwrite")
        atomic_write_text(file, json.dumps(identity, indent=2) + "\n")
        return
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}); give --overwrite to evaluate anew") from error
    differing = [f"{k} was {held.get(k)!r}, now {now!r}" for k, now in identity.items() if held.get(k) != now]
    if differing:
        raise DataError(
            f"{output}: holds another evaluation ({'; '.join(differing)}); choose another folder or give --overwrite"
        )


def _remove(output: Path) -> None:
    for name in (SUMMARY, ITEMS, EVALUATION):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / MEDIA, ignore_errors=True)


def _read_items(file: Path) -> dict[str, Row]:
    """The items that are there, by id; a last line that was cut off is removed from the file."""
    if not file.exists():
        return {}
    rows = list(read_jsonl(file))
    atomic_write_text(file, "".join(map(json_line, rows)))
    return {row["id"]: row for row in rows}


def _check_unique(records: Sequence[Record]) -> None:
    seen: dict[str, Record] = {}
    for record in records:
        if record.id in seen:
            raise DataError(f"{record.origin}: has the id {record.id!r} of {seen[record.id].origin}; ids must differ")
        seen[record.id] = record


# --------------------------------------------------------------------------------------------------- the items


def _batches(
    processor: Any, records: Sequence[Record], settings: EvalSettings, batch_size: int, done: dict[str, Row]
) -> Iterator[tuple[list[Record], list[dict[str, torch.Tensor]]]]:
    """Batches of records of similar length, encoded; those with all items in `done` are left out.

    Which records form a batch does not depend on `done`: a resumed evaluation computes what an uninterrupted one does.
    """
    for start in range(0, len(records), WINDOW * batch_size):
        window = records[start : start + WINDOW * batch_size]
        if all(record.id in done for record in window):
            continue
        encoded = [encode(processor, record, settings) for record in window]
        order = sorted(range(len(window)), key=lambda i: encoded[i]["input_ids"].shape[1])
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            if not all(window[i].id in done for i in batch):
                yield [window[i] for i in batch], [encoded[i] for i in batch]


def item_rows(
    model: nn.Module,
    processor: Any,
    task: Task,
    answered: Sequence[Answered],
    settings: EvalSettings,
    shown: set[str],
    output: Path | None,
) -> Iterator[Row]:
    """The rows of one batch, as `items.jsonl` holds them; maps and images of the items that are `shown` are kept,
    the images in the folder `output`; nothing of them without a folder. `settings.layer` counts from the first layer.
    """
    scored = [_judge(task, item.record, item.text, settings) for item in answered]
    wanted = [item.record.grounded or item.record.id in shown for item in answered]
    answers = [one.prediction if look else None for one, look in zip(scored, wanted, strict=True)]
    looks = look_at_answers(model, processor, answered, answers, per_head="heads" in settings.probes)
    views = [_view(processor, item, settings) if seen else None for item, seen in zip(answered, wanted, strict=True)]
    probed = _probes(model, processor, answered, answers, looks, views, settings)
    for item, one, look, shows in zip(answered, scored, looks, views, strict=True):
        yield {
            "id": item.record.id,
            "question": item.record.question,
            "solution": item.record.solution,
            "completion": item.text,
            "prediction": one.prediction,
            "correct": one.correct,
            "unparsed": one.score is None,
            "truncated": item.completion.truncated,
            "tokens": len(item.completion.ids),
            "cluster": one.cluster,
            **_grounding(item.record, look, shows, settings.layer),
            "probes": probed.get(item.record.id),
            **_shown(item.record.id, look, shows, settings.layer, output if item.record.id in shown else None),
        }


def _view(processor: Any, item: Answered, settings: EvalSettings) -> View | Passage:
    """What the maps of one item lie on: its document, or else its images and videos."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return passage(tokenizer, item.prompt.input_ids, item.record) or view(
        item.record, processor, settings.num_frames, settings.fps
    )


def _probes(
    model: nn.Module,
    processor: Any,
    answered: Sequence[Answered],
    answers: Sequence[str | None],
    looks: Sequence[Look | None],
    views: Sequence[View | Passage | None],
    settings: EvalSettings,
) -> dict[str, Row]:
    """What the probes say of the items with boxes and an answer, by id."""
    wanted = parse_probes(settings.probes)
    chosen, items = [], []
    for item, body, look, shows in zip(answered, answers, looks, views, strict=True):
        if wanted and body and look and isinstance(shows, View) and shows.boxes:
            span = answer_span(getattr(processor, "tokenizer", processor), item.completion.ids, body)
            assert span is not None  # there is a look at its first token
            chosen.append(item)
            items.append(Seen(item.record.id, item.prompt, item.completion.ids, span, look, shows.boxes, shows.sizes))
    if not items:
        return {}
    neutral = []
    if {"relative", "sinks"} & set(wanted):
        for item in chosen:
            inputs = encode(processor, neutral_record(item.record), settings)
            neutral.append(prepare_prompt(model, inputs, item.prompt.features))
    return dict(zip((item.id for item in items), probe(model, items, neutral, wanted), strict=True))


def _judge(task: Task, record: Record, text: str, settings: EvalSettings) -> Scored:
    return task.judge(record, text, mode=settings.scorer, think=settings.think)


def _grounding(record: Record, look: Look | None, shows: View | Passage | None, layer: int) -> Row:
    if look is None or shows is None or not shows.boxes:
        return {"grounding": None, "layers": None}
    try:
        found = [grounding(seen.maps, shows.boxes, shows.sizes, seen.visual_share) for seen in look.layers]
    except DataError as error:
        raise DataError(f"{record.origin}: {error}") from error
    layers = [one.as_dict() for one in found if one is not None]
    return {"grounding": layers[layer], "layers": layers}


def _shown(id: str, look: Look | None, shows: View | Passage | None, layer: int, output: Path | None) -> Row:
    """The medium that is shown: the first with a box, else the first; and its map, boxes and file. A video is a sheet of the
    frames that have maps, at the seconds `times`."""
    if not isinstance(shows, View) or not shows.pictures:
        return {"map": None, "image": None, "size": None, "boxes": []}
    medium = shows.medium_of(shows.boxes[0].medium if shows.boxes else 0)
    whole = sheet(shows, medium)
    row: Row = {"map": None, "image": None, "size": list(whole.picture.size), "boxes": whole.boxes}
    if whole.times:
        row["times"] = [round(time, 3) for time in whole.times]
    if output is not None:
        row["image"] = f"{MEDIA}/{_file_name(id)}.png"
        small = whole.picture.copy()
        small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        (output / MEDIA).mkdir(parents=True, exist_ok=True)
        small.save(output / row["image"])
        if look is not None:
            row["map"] = _map(sheet_map(look.layers[layer].maps[medium.start : medium.stop]))
    return row


def _map(values: NDArray[np.float64]) -> Row:
    return {"grid": list(values.shape), "values": [float(f"{value:.5g}") for value in values.ravel()]}


def _file_name(id: str) -> str:
    """`id` where it can be the name of a file, else a digest of it."""
    if re.fullmatch(r"\w[\w. -]{0,99}", id, re.ASCII):
        return id
    return hashlib.blake2b(id.encode(), digest_size=8).hexdigest()


# -------------------------------------------------------------------------------------------------- the summary


def _summarise(
    model: str, task: Task, records: Sequence[Record], rows: Sequence[Row], settings: EvalSettings
) -> Summary:
    scored = [_judge(task, record, row["completion"], settings) for record, row in zip(records, rows, strict=True)]
    figures = task.aggregate(scored)
    interval = _interval(scored)
    layers = [row["layers"] for row in rows if row["layers"] is not None]
    means = [_mean([item[i] for item in layers]) for i in range(len(layers[0]))] if layers else []
    return Summary(
        model=model,
        task=task.name,
        n=len(rows),
        accuracy=figures["accuracy"],
        ci=(interval.low, interval.high),
        unparsed=int(figures["unparsed"]),
        truncated=sum(row["truncated"] for row in rows),
        majority=task.majority(records)[1],
        grounding=means[settings.layer] if means else None,
        layers=tuple(means) if means else None,
        probes=summarise([row["probes"] for row in rows]),
        figures={name: value for name, value in figures.items() if name not in ("accuracy", "n", "unparsed")},
        settings=asdict(settings),
    )


def _mean(items: Sequence[Row]) -> Grounding:
    """Mean of groundings as items hold them, with None for NaN."""
    mean = mean_grounding([Grounding.from_dict(item) for item in items]).mean
    assert mean is not None  # there is at least one
    return mean


def _interval(scored: Sequence[Scored]) -> Interval:
    correct = [item.correct for item in scored]
    clusters = [item.cluster or f"\0{item.id}" for item in scored]
    groups = len(set(clusters))
    alone = groups == len(scored) and np.isin(correct, (0.0, 1.0)).all()
    if alone or set(correct) in ({0.0}, {1.0}):  # a bootstrap of equal scores has no width
        return proportion_interval(round(sum(correct) * groups / len(correct)), groups)
    return mean_interval(correct, clusters)
