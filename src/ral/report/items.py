"""Tables of items with pages: `items.html` with all items of one evaluation, and the failures of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral.errors import DataError
from ral.evaluate.items import Item
from ral.files import atomic_write_text
from ral.report.artefacts import Evaluation, number, read_evaluation
from ral.report.experiment import Arm
from ral.report.gallery import OUTCOMES, answered, outcomes, saved_image
from ral.report.heatmap import picture
from ral.report.templating import clip, render
from ral.runs.names import ITEMS, ITEMS_PAGE

#: Longest side of a thumbnail, in pixels.
THUMBNAIL = 96
#: Characters of a text that `items.html` holds, and that a report's failures do.
LONGEST, SHORT = 2000, 600
#: Failures that a report holds at most.
MAX_FAILURES = 300


@dataclass(frozen=True)
class Table:
    """Items to page through, `page` at a time: `rows` as the script reads them, the heading of each column of answers, and
    (tag, name, number of rows) of what can be shown alone. `omitted` rows are left out."""

    rows: list[dict[str, Any]]
    columns: list[str]
    filters: list[tuple[str, str, int]]
    page: int = 25
    omitted: int = 0


def write_items(folder: Path) -> Path:
    """Writes `items.html` into `folder`, an evaluation folder, and returns its path.

    Thumbnails are of the images that the evaluation kept. Raises DataError if the folder holds no items.
    """
    evaluation, notices = read_evaluation(Path(folder))
    if not evaluation.items:
        raise DataError(f"{folder}: no items to show; expected {ITEMS}, which `ral eval` writes")
    rows = []
    for item in evaluation.items.values():
        answer = _answer(item, LONGEST)
        tags = [answer["state"], *(["truncated"] if answer["truncated"] else [])]
        rows.append(_row(item, [evaluation], [answer], tags, LONGEST))
    names = {tag: tag.capitalize() for tag in ("right", "wrong", "unparsed", "truncated")}
    page = render(
        "items.html.j2",
        title=f"{evaluation.task}, item by item",
        model=str(evaluation.summary.get("model", "")),
        accuracy=number(evaluation.summary.get("accuracy")),
        table=Table(rows, ["Answer"], _filters(rows, names)),
        left_out=_left_out(rows, list(evaluation.items.values())),
        notices=notices,
    )
    path = Path(folder) / ITEMS_PAGE
    atomic_write_text(path, page)
    return path


def _left_out(rows: Sequence[dict[str, Any]], items: Sequence[Item]) -> list[str]:
    """What of the evaluation the page does not show, in words."""
    without = sum(row["image"] is None for row in rows)
    texts = [(item.question, item.solution, item.completion, item.prediction or "") for item in items]
    cut = sum(any(len(text) > LONGEST for text in one) for one in texts)
    found = (
        [f"images of {without:,} items, as the evaluation keeps those of a few (`ral eval --show N`)"]
        if without
        else []
    )
    found += [f"ends of {cut:,} items' texts beyond {LONGEST:,} characters, which items.jsonl holds"] if cut else []
    maps = sum(item.map is not None or item.grounding is not None for item in items)
    found += (
        [f"where the model looked, which `ral report` on the run shows, and items.jsonl holds for {maps:,} items"]
        if maps
        else []
    )
    return found


def failures(arms: Sequence[Arm], task: str) -> Table:
    """The items of `task` that at least one arm got wrong, with the answers of all, of the first run of each."""
    scored, found = answered(arms, task), outcomes(arms, task)
    rows = []
    for key, outcome in found.items():
        items = [evaluation.items[key] for *_, evaluation in scored]
        if all(item.right for item in items):
            continue
        answers = [_answer(item, SHORT) for item in items]
        tags = [outcome]
        tags += ["unparsed"] if any(answer["state"] == "unparsed" for answer in answers) else []
        tags += ["truncated"] if any(answer["truncated"] for answer in answers) else []
        rows.append(_row(items[0], [evaluation for *_, evaluation in scored], answers, tags, SHORT))
    known = OUTCOMES if len(scored) > 1 else {"wrong": "Wrong"}
    names = {**known, "unparsed": "Unparsed", "truncated": "Truncated"}
    kept = rows[:MAX_FAILURES]
    return Table(
        kept, [arm.label for _, arm, _ in scored], _filters(kept, names), page=10, omitted=len(rows) - len(kept)
    )


def _filters(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> list[tuple[str, str, int]]:
    counts = Counter(tag for row in rows for tag in row["tags"])
    return [(tag, name, counts[tag]) for tag, name in names.items() if counts[tag]]


def _row(
    item: Item,
    evaluations: Sequence[Evaluation],
    answers: list[dict[str, Any]],
    tags: list[str],
    longest: int,
) -> dict[str, Any]:
    """The row of one item in a table; every value is text, a number, a list of texts, or None."""
    images = (_thumbnail(item, evaluation.folder) for evaluation in evaluations)
    return {
        "id": clip(item.id, 80),
        "question": clip(item.question, longest),
        "solution": clip(item.solution, longest),
        "image": next((image for image in images if image is not None), None),
        "answers": answers,
        "tags": tags,
    }


def _answer(item: Item, longest: int) -> dict[str, Any]:
    unparsed = item.unparsed or item.prediction is None
    return {
        "prediction": None if item.prediction is None else clip(item.prediction, longest),
        "completion": clip(item.completion, longest),
        "state": "unparsed" if unparsed else "right" if item.right else "wrong",
        "score": None if item.correct in (0.0, 1.0) else round(item.correct, 2),
        "truncated": item.truncated,
        "tokens": item.tokens,
    }


def _thumbnail(item: Item, folder: Path) -> str | None:
    image = saved_image(folder, item)
    if image is None:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture(image)
