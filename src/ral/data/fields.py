"""Takes the fields of a row by kind. Reward functions get the rest, except media."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from ral.data.box_fields import read_boxes
from ral.data.dialogue import Dialogue, read_dialogue
from ral.data.media import image_from_bytes
from ral.data.problem_type import guess_type
from ral.data.record import Box, BoxScale, ProblemType, Record, Turn
from ral.data.values import (
    bytes_of,
    is_empty,
    is_number,
    media_in,
    short,
    spilled,
    unencodable,
    untagged,
    written_out,
)
from ral.errors import DataError

Row = dict[str, Any]

TYPES: dict[str, ProblemType] = {kind.casefold(): kind for kind in get_args(ProblemType)}
IMAGE_COLUMNS = ("images", "image", "image_path", "image_paths")
VIDEO_COLUMNS = ("videos", "video", "video_path", "video_paths")
#: Columns of boxes. Those of `boxes` are pixels unless another scale is named; the others say nothing of theirs.
BOX_COLUMNS = ("boxes", "bbox", "bboxes", "bboxs", "evidence_bboxes", "target_instances")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*+://", re.IGNORECASE)


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read.

    base: folder that media paths start from, and may not leave unless `allow_outside`. columns: our names for columns of
    the source. box_scale: what the coordinates of boxes count; None: what the format says. needs_solution: refuse a row without
    an answer, which otherwise has the solution "".
    """

    base: Path
    allow_outside: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)
    box_scale: BoxScale | None = None
    needs_solution: bool = True


class Fields:
    """Takes the fields of one row apart."""

    def __init__(self, row: Mapping[str, Any], where: str, number: int, reading: ReadOptions):
        self.row, self.where, self.number, self.reading = dict(row), where, number, reading
        if unencodable(self.row):
            name = next(name for name, value in self.row.items() if unencodable(name) or unencodable(value))
            raise self.fail(ascii(name)[1:-1], "text, found half of a surrogate pair", "write the text anew in UTF-8")
        self.aside: Row = {}
        if reading.columns:
            self._rename(reading.columns)

    def _rename(self, columns: Mapping[str, Any]) -> None:
        """Give columns our names; what stood under such a name, and all that `extra` names, is set aside."""
        keep = columns.get("extra", ())
        for name in [keep] if isinstance(keep, str) else keep:
            if name not in self.row:
                raise self.fail(name, "a column, as `columns` names it, found none")
            self.aside[name] = self.row.pop(name)
        found = {ours: self._column(theirs) for ours, theirs in columns.items() if ours != "extra"}
        for theirs in columns.values():
            if isinstance(theirs, str):
                self.row.pop(theirs, None)
        self.aside |= {ours: self.row.pop(ours) for ours in found if ours in self.row}
        self.row |= found

    def _column(self, path: str) -> Any:
        """The value of a column, or of a field inside one: `reward_model.ground_truth`."""
        if path in self.row:
            return self.row[path]
        value: Any = self.row
        for name in path.split("."):
            value = written_out(value)
            if not isinstance(value, Mapping) or name not in value:
                raise self.fail(path, f"a column, as `columns` names it, among {', '.join(self.row)}")
            value = value[name]
        return value

    # ----- taking fields

    def take(self, *names: str) -> Any:
        """The first of these fields that holds something, taken off the row with the empty ones before it."""
        for name in names:
            value = self.row.pop(name, None)
            if value is None:
                continue
            if hasattr(value, "tolist"):
                value = value.tolist()
            if not is_empty(value):
                return value
        return None

    def has(self, *names: str) -> bool:
        """Whether any of these fields holds something."""
        return any(name in self.row and not is_empty(self.row[name]) for name in names)

    def fail(self, field: str, expected: str, remedy: str = "correct the row or drop it") -> DataError:
        return DataError(f"{self.where}: field {field!r}: expected {expected}; {remedy}")

    def text(self, *names: str) -> str:
        value = self.take(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(names[0], f"a text, found {short(value)}")
        return value

    def optional_text(self, *names: str) -> str | None:
        value = self.take(*names)
        if value is not None and not isinstance(value, str):
            raise self.fail(names[0], f"a text, found {short(value)}")
        return value

    def answers(self, *names: str) -> tuple[str, ...]:
        """The valid answers, without tags: one, or a list of them. Four numbers in a list are one answer, a box."""
        value = self.take(*names)
        if value is None and not self.reading.needs_solution:
            return ("",)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, list | tuple) and len(value) == 4 and all(map(is_number, value)):
            value = str(list(value))
        listed = list(value) if isinstance(value, list | tuple) else [value]
        if len(listed) > 1 and not all(isinstance(one, str) for one in listed):
            raise self.fail(names[0], f"the answer, or a list of texts each of which is right, found {short(value)}")
        found = [untagged(str(one), "answer") for one in listed if isinstance(one, str) or is_number(one)]
        if len(found) < len(listed) or not all(found):
            raise self.fail(names[0], f"the answer as text or number, found {short(value)}")
        return tuple(dict.fromkeys(found))

    def options(self) -> tuple[str, ...]:
        """The options of a choice: a list, an object by letters, or columns `A`, `B`, …"""
        value = written_out(self.take("options", "choices"))
        if value is None and "A" in self.row and self.has("A") and self.has("B"):
            letters = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if self.has(letter)]
            value = {letter: self.take(letter) for letter in letters}
        if isinstance(value, dict):
            named = {name: text for name, text in value.items() if text is not None}
            if sorted(named) != [chr(ord("A") + n) for n in range(len(named))]:
                raise self.fail("options", f"options by the letters A, B, … without a gap, found {short(value)}")
            value = [f"{letter}. {named[letter]}" for letter in sorted(named)]
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(is_number(o) or (isinstance(o, str) and o) for o in value):
            raise self.fail("options", f"a list of texts, found {short(value)}")
        return tuple(map(str, value))

    def dialogue(self, name: str) -> Dialogue:
        try:
            return read_dialogue(self.take(name))
        except ValueError as error:
            raise self.fail(name, str(error)) from error

    def history(self) -> tuple[Turn, ...]:
        """Earlier turns in a column of their own: messages, or pairs of question and reply."""
        value = written_out(self.row.get("history"))
        if not is_empty(value) and not isinstance(value, list | tuple):
            return ()  # a column of another meaning
        if self.take("history") is None:
            return ()
        pairs = [
            {"role": role, "content": text}
            for pair in value
            if isinstance(pair, list | tuple) and len(pair) == 2
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        try:
            found = read_dialogue([*(pairs or value), {"role": "user", "content": "?"}])
        except ValueError as error:
            raise self.fail("history", str(error)) from error
        if found.system or any(medium is not None for medium in (*found.images, *found.videos)):
            raise self.fail("history", "turns of user and assistant, with marks for the media of the row's columns")
        return found.history

    # ----- media

    def media(self, *names: str) -> list[Any]:
        value = self.take(*names)
        if isinstance(value, str) and value.startswith("["):
            value = written_out(value)
        if value is None:
            return []
        return list(value) if isinstance(value, list | tuple) else [value]

    def image(self, value: Any) -> Path | Image.Image:
        value = self._content(value, "image")
        if isinstance(value, bytes):
            return image_from_bytes(value, self.where)
        return value if isinstance(value, Image.Image) else self.path(value, "image")

    def video(self, value: Any) -> Path:
        value = self._content(value, "video")
        if not isinstance(value, bytes):
            return self.path(value, "video")
        try:
            return spilled(value)
        except ValueError as error:
            raise self.fail("video", f"a video, found {short(value)} that are none ({error})") from error

    def _content(self, value: Any, kind: str) -> Any:
        """The bytes, image or path that a field of a medium holds."""
        if isinstance(value, dict):
            names = ("bytes", "path", kind, "url", f"{kind}_url")
            value = next((value[name] for name in names if not is_empty(value.get(name))), None)
        if isinstance(value, bytearray | memoryview):
            return bytes(value)
        if not isinstance(value, str):
            return value
        try:
            content = bytes_of(value)
        except ValueError as error:
            raise self.fail(kind, f"a path or a data URI, found {error}") from error
        return value if content is None else content

    def path(self, value: Any, field: str) -> Path:
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self.fail(field, f"a path, found {short(value)}")
        value = value.removeprefix("file://")
        if _ELSEWHERE.match(value):
            raise self.fail(field, f"a local file, found {short(value)}", "download it and give its path")
        root = os.path.abspath(self.reading.base)
        path = os.path.normpath(os.path.join(root, value))
        if not self.reading.allow_outside:
            # Both as it is written and as links on the way lead: an archive may hold links of its own.
            inside = _within(root, path) and _within(_real_folder(root), _real_path(path))
            if not inside:
                raise self.fail(
                    field,
                    f"a path inside {self.reading.base}, found {short(value)}",
                    "set the media root (data_root) to the folder that holds all media, or set allow_outside",
                )
        return Path(path)

    def boxes(self, media: tuple[Path | Image.Image, ...], images: int, scale: BoxScale | None) -> tuple[Box, ...]:
        """The boxes of the one column that has some; `scale` is what the format says of it."""
        name = next((name for name in BOX_COLUMNS if self.has(name)), None)
        if name is None:
            self.take(*BOX_COLUMNS)
            return ()
        scale = self.reading.box_scale or scale or ("pixels" if name == "boxes" else None)
        if scale is None:
            raise self.fail(
                name,
                "boxes whose scale is named",
                "set box_scale to pixels, unit or thousand (or keep the column for reward functions: "
                f"columns: {{extra: [{name}]}})",
            )
        try:
            return read_boxes(written_out(self.take(name)), scale, media, images)
        except ValueError as error:
            raise self.fail(name, str(error)) from error

    # ----- putting the record together

    def asked(
        self,
        dialogue: Dialogue,
        solutions: Sequence[str] | None = None,
        kind: ProblemType | None = None,
        box_scale: BoxScale | None = None,
    ) -> Record:
        """The record of a dialogue. `solutions` default to its last reply."""
        if solutions is None:
            solutions = [(dialogue.reply or "").strip() and str(dialogue.reply)]
            if self.reading.needs_solution and not solutions[0]:
                raise self.fail("solution", "an answer, in a column `solution` or in a last reply, found nothing")
        images = self._placed(dialogue.images, self.media(*IMAGE_COLUMNS), "images")
        videos = self._placed(dialogue.videos, self.media(*VIDEO_COLUMNS), "videos")
        return self.record(
            dialogue.problem, solutions, images, videos, kind,
            system=dialogue.system, history=dialogue.history, trace=dialogue.trace, box_scale=box_scale,
            conversational=dialogue.conversational,
        )  # fmt: skip

    def _placed(self, marked: Sequence[Any], column: list[Any], name: str) -> list[Any]:
        """The media of a dialogue that stand in it, in a column, or in both."""
        if all(medium is None for medium in marked):
            return column
        blanks = sum(medium is None for medium in marked)
        if blanks != len(column):
            raise self.fail(name, f"{blanks} media for the marks that the dialogue leaves, found {len(column)}")
        rest = iter(column)
        return [next(rest) if medium is None else medium for medium in marked]

    def record(
        self,
        problem: str,
        solutions: Sequence[str],
        images: list[Any],
        videos: list[Any],
        kind: ProblemType | None = None,
        *,
        system: str | None = None,
        history: tuple[Turn, ...] = (),
        trace: str | None = None,
        box_scale: BoxScale | None = None,
        conversational: bool = False,
    ) -> Record:
        options = self.options()
        kind = self._kind() or kind or guess_type(solutions[0], options)
        worked = self.optional_text("process", "trace")
        own_system = self.optional_text("system", "system_prompt")
        if own_system is not None and system is not None:
            raise self.fail("system", "one system turn, found one in the dialogue, too")
        own_history = self.history()
        if self.row.get("conversational") is True:  # of a clean copy
            conversational = bool(self.take("conversational"))
        for medium in ("image", "images", "video", "videos"):
            if self.take(medium) is not None:
                raise self.fail(medium, "one column of images and one of videos", "join the two columns")
        pictures = tuple(self.image(value) for value in images)
        clips = tuple(self.video(value) for value in videos)
        record = Record(
            id=self._id(),
            problem=problem,
            solution=solutions[0],
            problem_type=kind,
            options=options,
            images=pictures,
            videos=clips,
            boxes=self.boxes((*pictures, *clips), len(pictures), box_scale),
            trace=trace if worked is None else untagged(worked, "think"),
            origin=self.where,
            extra=self.row | self.aside,
            system=system or own_system,
            history=own_history + history,
            other_solutions=tuple(solutions[1:]),
            conversational=conversational,
        )
        self._refuse_unread_media(record)
        return record

    def _kind(self) -> ProblemType | None:
        name = self.take("problem_type")
        if name is not None and str(name).casefold() not in TYPES:
            raise self.fail("problem_type", f"one of {', '.join(TYPES.values())}, found {short(name)}")
        return None if name is None else TYPES[str(name).casefold()]

    def _id(self) -> str:
        value = self.take("problem_id", "id")
        if value is None:
            return str(self.number)
        if not isinstance(value, str) and not is_number(value):
            raise self.fail("id", f"a text or a number, found {short(value)}")
        return str(value)

    def _refuse_unread_media(self, record: Record) -> None:
        """A medium in a column that nothing reads would be left out of training in silence.

        The path of a medium that was read, or of a file that is not there beside media that were read, is only a note.
        """
        media = (*record.images, *record.videos)
        for name, value in self.row.items():
            for medium in media_in(value):
                read = {medium.name for medium in media if isinstance(medium, Path)}
                note = isinstance(medium, str) and media and not medium.startswith("data:")
                if note and (os.path.basename(medium) in read or not self._is_there(medium)):
                    continue
                raise self.fail(
                    name,
                    f"media in {IMAGE_COLUMNS[0]} or {VIDEO_COLUMNS[0]}, found {short(medium)}, which nothing reads",
                    f"say what it is (columns: {{images: {name}}}), or keep it for reward functions "
                    f"(columns: {{extra: [{name}]}})",
                )

    def _is_there(self, path: str) -> bool:
        try:
            return self.path(path, "path").is_file()
        except (DataError, OSError):
            return False


def _within(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _real_path(path: str) -> str:
    """`os.path.realpath`, which asks the disk about every folder on the way, with the folder's answer kept."""
    folder = _real_folder(os.path.dirname(path))
    real = os.path.join(folder, os.path.basename(path))
    return os.path.realpath(real) if os.path.islink(real) else real
