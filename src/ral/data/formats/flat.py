"""Formats with the question and the answer in their own columns."""

from __future__ import annotations

from ral.data.dialogue import read_dialogue
from ral.data.fields import IMAGE_COLUMNS, VIDEO_COLUMNS, Fields
from ral.data.formats.format import Format, Row
from ral.data.record import Record
from ral.data.values import short

#: Columns of dialogues, and the format that reads them.
_DIALOGUES = {"prompt": "trl", "messages": "messages"}
_QUESTION = ("problem", "question", "query")
_ANSWER = ("solution", "solutions", "answer", "answers", "ground_truth", "response")


def _video_r1(row: Fields) -> Record:
    kind, path = row.take("data_type"), row.take("path")
    if kind not in ("image", "video"):
        raise row.fail("data_type", f"'image' or 'video', found {short(kind)}")
    if path is None:
        raise row.fail("path", "a text, found nothing")
    images, videos = ([path], []) if kind == "image" else ([], [path])
    return row.record(row.text("problem"), row.answers("solution"), images, videos)


def _columns(row: Fields) -> Record:
    _refuse_unread_turns(row)
    problem, solutions = row.text(*_QUESTION), row.answers(*_ANSWER)
    return row.record(problem, solutions, row.media(*IMAGE_COLUMNS), row.media(*VIDEO_COLUMNS))


def _refuse_unread_turns(row: Fields) -> None:
    """A dialogue beside the question may repeat it; what it says beyond would be left out in silence."""
    for name in _DIALOGUES:
        try:
            beside = read_dialogue(row.row.get(name))
        except ValueError:
            continue  # a column of another meaning
        if beside.system or beside.history or any(medium is not None for medium in (*beside.images, *beside.videos)):
            raise row.fail(
                name,
                "the question as a text or as a dialogue, found both, and more than the question in the dialogue",
                f"read the dialogue (format: {_DIALOGUES[name]}), or keep it for reward functions (columns: {{extra: [{name}]}})",
            )


def _tells_columns(row: Row) -> bool:
    return "problem" in row or (("question" in row or "query" in row) and not {"prompt", "messages"} & row.keys())


def _saliency_r1(row: Fields) -> Record:
    problem, solutions = row.text("problem"), row.answers("solution")
    return row.record(problem, solutions, row.media(*IMAGE_COLUMNS), [], box_scale="unit")


def _visual_cot(row: Fields) -> Record:
    if row.has("conversations"):
        return row.asked(row.dialogue("conversations"), box_scale="pixels")
    problem, answers = row.text("question"), row.answers("answer")
    further = row.answers("possible_answers") if row.has("possible_answers") else ()
    solutions = tuple(dict.fromkeys((*answers, *further)))
    return row.record(problem, solutions, row.media(*IMAGE_COLUMNS), [], box_scale="pixels")


VIDEO_R1 = Format("video-r1", lambda row: {"problem", "path", "data_type"} <= row.keys(), _video_r1)
COLUMNS = Format("columns", _tells_columns, _columns)
SALIENCY_R1 = Format(
    "saliency-r1",
    lambda row: {"problem", "dataset", "bbox"} <= row.keys() and isinstance(row["bbox"], str),
    _saliency_r1,
)
VISUAL_COT = Format("visual-cot", lambda row: {"bboxs", "width", "height"} <= row.keys(), _visual_cot)
