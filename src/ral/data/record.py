"""`Record`: every reader returns it, and every later stage takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

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

    `problem` is the question as a person would read it; `<image>` / `<video>` marks in it say where the media
    stand (media without a mark come first). `system` is the text of the system turn and `history` the turns before
    `problem`; marks count from the first turn on, through to `problem`. `solution` is the bare answer, without
    `<answer>` tags, and `other_solutions` are further answers that are as right. `boxes`
    are the places that hold the evidence, where they are known; `document` is the part of `problem` that is a text to be
    read, and `evidence` the places in `problem` that hold its evidence. `trace` is a worked example of the thinking
    (without tags), for supervised cold starts. `origin` names file and row for error messages. `extra` holds
    every further column of the source and is handed to reward functions by keyword.
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
    def grounded(self) -> bool:
        """Whether it says where its evidence is."""
        return bool(self.boxes or self.evidence)

    @property
    def place(self) -> str:
        """Which record it is, for messages."""
        return f"record {self.id} ({self.origin or 'in memory'})"

    def columns(self) -> dict[str, Any]:
        """What reward functions get by keyword beside prompts and completions."""
        answers = {"solution": self.solution, "solutions": self.solutions}
        own = {"problem_type": self.problem_type, "options": self.options, "boxes": self.boxes, "id": self.id}
        return {**self.extra, **answers, **own}
