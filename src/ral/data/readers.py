"""Data formats of other packages, each read as it is into `Record`s.

The format of a row is recognised by its fields:

| format   | fields that tell it apart           | answer                       | media                               |
|----------|-------------------------------------|------------------------------|-------------------------------------|
| verl     | `reward_model`                      | `reward_model.ground_truth`  | `images`, `videos`                  |
| vlm-r1   | `conversations`                     | the gpt turn                 | `image` (one or a list)             |
| video-r1 | `path` with `data_type`             | `solution`                   | `path`                              |
| trl      | `prompt` (text or messages)         | `solution` or `answer`       | `image` or `images`, also `videos`  |
| columns  | `problem` (EasyR1, R1-V, our own)   | `solution` or `answer`       | `image(s)`, `video(s)`              |

All other fields go to `Record.extra`, from where reward functions get them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from ral.data.media import image_from_bytes
from ral.data.record import IMAGE_MARK, VIDEO_MARK, Box, ProblemType, Record
from ral.data.sources import Row, rows, undecoded
from ral.errors import DataError

_TYPES: dict[str, ProblemType] = {kind.casefold(): kind for kind in get_args(ProblemType)}
#: VLM-R1's `accu_reward_method`, where it says what kind of answer is meant.
_METHODS: dict[str, ProblemType] = {"mcq": "multiple choice", "math": "math", "numeric": "numerical", "iou": "box"}

_ANSWER = re.compile(r"\s*<answer>\s*(.*?)\s*</answer>\s*", re.DOTALL)
_THINK = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*", re.DOTALL)
_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+\s*%?")
_BOX = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([r"-?[\d.]+"] * 4) + r"\s*[\])]")


def read_records(
    source: str | Path,
    *,
    root: str | Path | None = None,
    format: str = "auto",
    split: str = "train",
    allow_outside: bool = False,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Record]:
    """The records of a file (json, jsonl, parquet), a folder of them, or a dataset on the hub, one at a time.

    Args:
        root: folder that media paths are relative to; default: the folder of the data file.
        format: one of `FORMATS`, or "auto": told by the fields of each row.
        split: which files of a folder, or which split of a hub dataset.
        allow_outside: accept media paths that leave `root`.
        on_error: gets the error of each row that cannot be read, which is then left out; default: it is raised.

    Raises `DataError` for a source or row that cannot be read: where, what was expected, what to do.
    """
    _check_format(format)
    if root is None:
        root = source if Path(source).is_dir() else Path(source).parent if Path(source).is_file() else "."
    for number, (where, row) in enumerate(rows(source, split), start=1):
        try:
            if isinstance(row, DataError):
                raise row
            yield _Reader(row, where, number, Path(root), allow_outside).read(format)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)


def as_records(
    data: str | Path | Iterable[Mapping[str, Any] | Record],
    *,
    root: str | Path | None = None,
    format: str = "auto",
    split: str = "train",
    name: str = "data",
) -> list[Record]:
    """The records of whatever holds rows: what `read_records` reads, or rows in memory, each told by its own fields.

    Args:
        data: a path or hub id; a `datasets.Dataset` or `IterableDataset`, whose images stay encoded until they are
            needed; or any iterable of rows in a known format, or of `Record`s.
        root: folder that media paths are relative to and may not leave. Default: for a path as in `read_records`; for
            rows in memory the working directory, with paths that may lie anywhere.
        format: as in `read_records`. split: of a path or hub id. name: what messages call rows in memory.

    Raises `DataError`, which names the row, for one that cannot be read.
    """
    _check_format(format)
    if isinstance(data, str | Path):
        return list(read_records(data, root=root, format=format, split=split))
    if isinstance(data, Mapping):
        raise DataError(f"{name}: is a {type(data).__name__} ({_short(list(data))}); give the rows of one split")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise DataError(f"{name}: is {_short(data)}; expected rows, a `datasets.Dataset`, a path or a hub id")
    base, allow_outside = Path("." if root is None else root), root is None
    records = []
    for number, row in enumerate(undecoded(data), start=1):
        where = f"{name}: row {number}"
        if isinstance(row, Record):
            records.append(row)
        elif isinstance(row, Mapping):
            records.append(_Reader(dict(row), where, number, base, allow_outside).read(format))
        else:
            raise DataError(f"{where}: is {_short(row)}; expected an object with named fields, or a `Record`")
    return records


def _check_format(format: str) -> None:
    if format not in ("auto", *FORMATS):
        raise DataError(f"format {format!r} is unknown; known are auto, {', '.join(FORMATS)}")


def detect_format(row: Row) -> str | None:
    """Name of the format that the fields of `row` tell of; None if they tell of none."""
    if "reward_model" in row and "prompt" in row:
        return "verl"
    if "conversations" in row:
        return "vlm-r1"
    if "problem" in row:
        return "video-r1" if "path" in row and "data_type" in row else "columns"
    return "trl" if "prompt" in row else None


class _Reader:
    """Takes the fields of one row apart; what it has not taken is left as extra."""

    def __init__(self, row: Row, where: str, number: int, base: Path, allow_outside: bool):
        self.row, self.where, self.base, self.allow_outside = dict(row), where, base, allow_outside
        self.number = number

    def read(self, format: str) -> Record:
        name = detect_format(self.row) if format == "auto" else format
        if name is None:
            raise DataError(
                f"{self.where}: the fields {', '.join(map(repr, self.row))} are of no known format; expected `problem`, "
                "`prompt` or `conversations` with an answer; rename the columns or name the format"
            )
        return FORMATS[name](self)

    # ----- taking fields

    def take(self, *names: str) -> Any:
        """The first of these fields that holds something, taken off the row with the empty ones before it."""
        for name in names:
            value = self.row.pop(name, None)
            if value is not None and value != [] and value != "":
                return value
        return None

    def fail(self, field: str, expected: str, remedy: str = "correct the row or drop it") -> DataError:
        return DataError(f"{self.where}: field {field!r}: expected {expected}; {remedy}")

    def text(self, *names: str) -> str:
        value = self.take(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(names[0], f"a text, found {_short(value)}")
        return value

    def answer(self, *names: str) -> str:
        value = self.take(*names)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
            raise self.fail(names[0], f"the answer as text or number, found {_short(value)}")
        return _untag(_ANSWER, str(value))

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.take(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise self.fail(name, f"a list of texts, found {_short(value)}") from error
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
            raise self.fail(name, f"a list of texts, found {_short(value)}")
        return tuple(map(str, value))

    def media(self, *names: str) -> list[Any]:
        value = self.take(*names)
        if value is None:
            return []
        return value if isinstance(value, list) else [value]

    def image(self, value: Any) -> Path | Image.Image:
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, dict):
            data = value.get("bytes")
            value = data if data is not None else value.get("path") or value.get("image")
        if isinstance(value, bytes):
            return image_from_bytes(value, self.where)
        return self.path(value, "image")

    def video(self, value: Any) -> Path:
        if isinstance(value, dict):
            if value.get("bytes") is not None:
                raise self.fail("video", "a file, found its bytes in the table", "write it to a file and give its path")
            value = value.get("path") or value.get("video")
        return self.path(value, "video")

    def path(self, value: Any, field: str) -> Path:
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self.fail(field, f"a path, found {_short(value)}")
        value = value.removeprefix("file://")
        if re.match(r"[a-z][a-z0-9+.-]*://|data:", value, re.IGNORECASE):
            raise self.fail(field, f"a local file, found {_short(value)}", "download it and give its path")
        root = os.path.abspath(self.base)
        path = os.path.normpath(os.path.join(root, value))
        # Both as it is written and as links on the way lead: an archive may hold links of its own.
        inside = _within(root, path) and _within(os.path.realpath(root), os.path.realpath(path))
        if not self.allow_outside and not inside:
            raise self.fail(
                field,
                f"a path inside {self.base}, found {_short(value)}",
                "set the media root (data_root) to the folder that holds all media, or set allow_outside",
            )
        return Path(path)

    def boxes(self) -> tuple[Box, ...]:
        found = []
        for box in self.media("boxes"):
            try:
                values = box if isinstance(box, dict) else dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
                found.append(Box(**values))
                if not (found[-1].x0 < found[-1].x1 and found[-1].y0 < found[-1].y1):
                    raise ValueError
            except (TypeError, ValueError) as error:
                raise self.fail("boxes", f"x0 < x1, y0 < y1 in pixels, found {_short(box)}") from error
        return tuple(found)

    # ----- putting the record together

    def record(
        self, problem: str, solution: str, images: list[Any], videos: list[Any], kind: ProblemType | None = None
    ) -> Record:
        options = self.texts("options")
        name = self.take("problem_type")
        if name is not None and str(name).casefold() not in _TYPES:
            raise self.fail("problem_type", f"one of {', '.join(_TYPES.values())}, found {_short(name)}")
        trace = self.take("process", "trace")
        for medium in ("image", "images", "video", "videos"):
            if self.take(medium) is not None:
                raise self.fail(medium, "one column of images and one of videos", "join the two columns")
        return Record(
            id=str(self.take("problem_id", "id") if {"problem_id", "id"} & set(self.row) else self.number),
            problem=problem,
            solution=solution,
            problem_type=_TYPES[str(name).casefold()] if name is not None else kind or guess_type(solution, options),
            options=options,
            images=tuple(self.image(value) for value in images),
            videos=tuple(self.video(value) for value in videos),
            boxes=self.boxes(),
            trace=_untag(_THINK, trace) if isinstance(trace, str) else None,
            origin=self.where,
            extra=self.row,
        )

    def dialogue(self, turns: Any, field: str) -> str:
        """The question in a list of chat messages, with marks where their parts are media."""
        if isinstance(turns, str):
            return turns
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise self.fail(field, f"a text or a list of messages, found {_short(turns)}")
        system = [self.spoken(turn.get("content"), field) for turn in turns if turn.get("role") == "system"]
        asked = [self.spoken(turn.get("content"), field) for turn in turns if turn.get("role") == "user"]
        if len(asked) != 1 or len(system) + 1 != len(turns):
            raise self.fail(field, f"one user turn, found {len(turns)} turns", "dialogues cannot be trained on")
        if system:
            self.row["system_prompt"] = "\n".join(system)
        return asked[0]

    def spoken(self, content: Any, field: str) -> str:
        if isinstance(content, str):
            return content
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise self.fail(field, f"message content as text or parts, found {_short(content)}")
        marks = {"image": IMAGE_MARK, "video": VIDEO_MARK}
        return "".join(marks.get(str(part.get("type"))) or str(part.get("text") or "") for part in content)


def _video_r1(row: _Reader) -> Record:
    kind, path = row.take("data_type"), row.text("path")
    if kind not in ("image", "video"):
        raise row.fail("data_type", f"'image' or 'video', found {_short(kind)}")
    images, videos = ([path], []) if kind == "image" else ([], [path])
    return row.record(row.text("problem"), row.answer("solution"), images, videos)


def _vlm_r1(row: _Reader) -> Record:
    turns = row.take("conversations")
    said = [(t.get("from"), t.get("value")) for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []
    if [who for who, _ in said] != ["human", "gpt"]:
        raise row.fail("conversations", f"one human and one gpt turn, found {_short(turns)}")
    row.row |= {"question": said[0][1], "reply": said[1][1]}
    solution = row.answer("reply")
    return row.record(
        row.text("question"),
        solution,
        row.media("image", "images"),
        [],
        _METHODS.get(str(row.row.get("accu_reward_method"))),
    )


def _verl(row: _Reader) -> Record:
    problem = row.dialogue(row.take("prompt"), "prompt")
    reward_model = row.row.get("reward_model")
    if not isinstance(reward_model, dict):
        raise row.fail("reward_model", f"an object with `ground_truth`, found {_short(reward_model)}")
    row.row["reward_model.ground_truth"] = reward_model.get("ground_truth")
    solution = row.answer("reward_model.ground_truth")
    return row.record(problem, solution, row.media("images", "image"), row.media("videos", "video"))


def _trl(row: _Reader) -> Record:
    problem = row.dialogue(row.take("prompt"), "prompt")
    # TRL leaves the answer to the reward functions, so there may be none under a name that we know.
    solution = (
        row.answer("solution", "answer", "ground_truth") if {"solution", "answer", "ground_truth"} & {*row.row} else ""
    )
    return row.record(problem, solution, row.media("images", "image"), row.media("videos", "video"))


def _columns(row: _Reader) -> Record:
    problem, solution = row.text("problem"), row.answer("solution", "answer")
    return row.record(problem, solution, row.media("images", "image"), row.media("videos", "video"))


#: Readers by the name of the format.
FORMATS: dict[str, Callable[[_Reader], Record]] = {
    "video-r1": _video_r1,
    "vlm-r1": _vlm_r1,
    "verl": _verl,
    "trl": _trl,
    "columns": _columns,
}


def guess_type(solution: str, options: tuple[str, ...] = ()) -> ProblemType:
    """The problem type of a record that does not name it: by its options, else by the form of its solution."""
    solution = solution.strip()
    if options or _LETTER.fullmatch(solution):
        return "multiple choice"
    if _BOX.fullmatch(solution):
        return "box"
    if _NUMBER.fullmatch(solution):
        return "numerical"
    return "math" if re.search(r"\\[a-z]+|\$|\^", solution) else "free-form"


def _within(root: str, path: str) -> bool:
    return os.path.commonpath([root, path]) == root


def _untag(tag: re.Pattern[str], text: str) -> str:
    match = tag.fullmatch(text)
    return match[1] if match else text.strip()


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
