"""`items.html`: every item of one evaluation in a table to page through, as one file without network access."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ral.data.record import DataError
from ral.files import atomic_write_text
from ral.report.artefacts import Evaluation, number, read_evaluation
from ral.report.gallery import saved_image
from ral.report.heatmap import picture
from ral.report.templating import clip, render

#: Rows on a page of the table.
PAGE = 25
#: Longest side of a thumbnail, in pixels.
THUMBNAIL = 96
#: Characters of a text that the page holds.
LONGEST = 2000


def write_items(folder: Path) -> Path:
    """Writes `items.html` into `folder`, an evaluation folder, and returns its path.

    Thumbnails are of the images that the evaluation kept. Raises DataError if the folder holds no items.
    """
    evaluation, notices = read_evaluation(Path(folder))
    if not evaluation.items:
        raise DataError(f"{folder}: no items to show; expected items.jsonl, which `ral eval` writes")
    rows = [_row(item, evaluation) for item in evaluation.items.values()]
    counts = {state: sum(row["state"] == state for row in rows) for state in ("right", "wrong", "unparsed")}
    counts["truncated"] = sum(row["truncated"] for row in rows)
    page = render(
        "items.html.j2",
        title=f"{evaluation.task}, item by item",
        model=str(evaluation.summary.get("model", "")),
        accuracy=number(evaluation.summary.get("accuracy")),
        counts=counts,
        rows=rows,
        first=rows[:PAGE],
        page_size=PAGE,
        notices=notices,
    )
    path = Path(folder) / "items.html"
    atomic_write_text(path, page)
    return path


def _row(item: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """What the table shows of one item; every value is text, a number or None."""
    prediction, correct, tokens = item.get("prediction"), number(item.get("correct")) or 0.0, number(item.get("tokens"))
    unparsed = item.get("unparsed") is True or prediction is None
    return {
        "id": clip(item.get("id", ""), 80),
        "question": clip(item.get("question", ""), LONGEST),
        "solution": clip(item.get("solution", ""), LONGEST),
        "prediction": None if prediction is None else clip(prediction, LONGEST),
        "completion": clip(item.get("completion", ""), LONGEST),
        "state": "unparsed" if unparsed else "right" if correct >= 0.5 else "wrong",
        "score": None if correct in (0.0, 1.0) else round(correct, 2),
        "truncated": item.get("truncated") is True,
        "tokens": None if tokens is None else int(tokens),
        "image": _thumbnail(item, evaluation.folder),
    }


def _thumbnail(item: dict[str, Any], folder: Path) -> str | None:
    image = saved_image(folder, item)
    if image is None:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture(image)
