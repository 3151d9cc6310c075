"""`Record`: every reader returns it, and every later stage takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ral.data.record_html import record_html
from ral.errors import DataError as DataError  # its older address

ProblemType = Literal["multiple choice", "numerical", "OCR", "free-form", "regression", "math", "box"]

#: Coordinates of boxes count pixels of the original medium, or run from 0 to 1, or from 0 to 1000, over its width and height.
BoxScale = Literal["pixels", "unit", "thousand"]

#: Marks where a medium stands inside `Record.problem`.
IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"


@dataclass(frozen=True)
class Box:
    """Pixels of one medium: `x0 <= x < x1`, `y0 <= y < y1`; `frame` counts the frames of a video."""

    x0: float
    y0: float
    x1: float
    y1: float
    medium: int = 0
    frame: int | None = None


@dataclass(frozen=True)
class Span:
    """Characters of a text: `start <= i < stop`."""

    start: int
    stop: int


@dataclass(frozen=True)
class Turn:
    """One earlier turn of a dialogue. `content` may hold marks of media."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Record:
    """One question about zero or more images or videos, with its checkable answer.

    `problem` is the question in plain text. `<image>` / `<video>` marks in it give the places of the media; media without a
    mark come first. `system` is the text of the system turn, and `history` holds the turns before `problem`; marks count
    from the first turn on, through to `problem`. `solution` is the bare answer, without `<answer>` tags, and
    `other_solutions` are equally valid answers. `boxes` are the places that show the evidence, if known. `document` is the
    part of `problem` that is a text to read, and `evidence` gives the places in `problem` that hold the evidence. `trace` is
    a worked example of the thinking (without tags), for supervised cold starts. `origin` names file and row for error
    messages. `extra` holds all other columns of the source; reward functions get them by keyword.
    `conversational` says that the source holds the prompt as messages (`role`, `content`): reward functions get messages then.
    """

    id: str
    problem: str
    solution: str
    problem_type: ProblemType = "free-form"
    options: tuple[str, ...] = ()
    images: tuple[Path | Image.Image, ...] = ()
    videos: tuple[Path, ...] = ()
    boxes: tuple[Box, ...] = ()
    document: Span | None = None
    evidence: tuple[Span, ...] = ()
    trace: str | None = None
    origin: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    history: tuple[Turn, ...] = ()
    other_solutions: tuple[str, ...] = ()
    conversational: bool = False

    @property
    def question(self) -> str:
        """The problem without the marks of its media."""
        # Not by a pattern with white space around the mark: it would cost the square of a long row of blanks.
        return " ".join(part.strip() for part in re.split(f"{IMAGE_MARK}|{VIDEO_MARK}", self.problem)).strip()

    @property
    def solutions(self) -> tuple[str, ...]:
        """All valid answers; `solution` is the first."""
        return self.solution, *self.other_solutions

    @property
    def has_media(self) -> bool:
        """Whether the record has images or videos."""
        return bool(self.images or self.videos)

    @property
    def grounded(self) -> bool:
        """Whether the record says where its evidence is."""
        return bool(self.boxes or self.evidence)

    @property
    def place(self) -> str:
        """The record's id and origin, for messages."""
        return f"record {self.id} ({self.origin or 'in memory'})"

    def _repr_html_(self) -> str:
        return record_html(self)

    def columns(self) -> dict[str, Any]:
        """The columns that reward functions get by keyword, besides prompts and completions."""
        answers = {"solution": self.solution, "solutions": self.solutions}
        own = {"problem_type": self.problem_type, "options": self.options, "boxes": self.boxes, "id": self.id}
        return {**self.extra, **answers, **own}
