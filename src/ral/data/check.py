"""`ral check`: finds errors in a data set before hours are spent on it.

Every row is read, every image and video decoded, every prompt built as training would build it, every solution read
by the scorer that training will use; duplicates, and media shared with evaluation data, are found by their bytes and by
how they look. Hostile files are reported like any others: decoding is bounded in pixels, formats and rows.
"""

from __future__ import annotations

import statistics
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ral.data.boxes import Size, box_coverage
from ral.data.clean_copy import CleanCopy
from ral.data.lookalikes import ONE_VIDEO, Appearance, LookIndex, image_look, video_look
from ral.data.prompt import build_messages, decode_prompt, encode_prompt
from ral.data.record import Box, Record
from ral.data.settings import PromptSettings
from ral.data.shown_media import shown_media
from ral.errors import DataError
from ral.families.tiles import Encoded

__all__ = ["ERRORS", "CheckReport", "Finding", "LookIndex", "check_records", "image_look"]

Kind = Literal["row", "media", "prompt", "tokens", "solution", "box", "unseen", "text", "duplicate", "conflict", "leak"]

_TITLES: dict[Kind, str] = {
    "row": "rows that cannot be read",
    "media": "images and videos that cannot be decoded",
    "prompt": "rows that give no prompt",
    "tokens": "prompts above the model's budget",
    "solution": "solutions that no answer can match",
    "box": "boxes outside of their medium",
    "unseen": "rows whose boxes the model does not see",
    "text": "suspicious text",
    "duplicate": "duplicates",
    "conflict": "one question about one medium with two solutions",
    "leak": "media shared with evaluation data",
}
#: Training would fail on these, or learn nothing from them; the rest are warnings.
ERRORS: frozenset[Kind] = frozenset({"row", "media", "prompt", "tokens", "solution", "box"})
#: Share of a box's area inside its medium below which its scale is another: training would cut off the rest.
_LEAST_INSIDE = 0.1


@dataclass(frozen=True)
class Finding:
    """One thing to know about one row. `message` names the row, what was expected, and what to do."""

    kind: Kind
    origin: str
    message: str

    @property
    def is_error(self) -> bool:
        return self.kind in ERRORS


@dataclass
class CheckReport:
    """What `check_records` found. `types` counts the rows of each problem type and `bad` those among them with an error;
    `tokens` holds the prompt lengths, where a processor was given, and `shown` the first prompts, as their text."""

    rows: int = 0
    types: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    images: int = 0
    videos: int = 0
    tokens: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    shown: list[tuple[str, str]] = field(default_factory=list)
    clean: Path | None = None
    kept: int = 0

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_error]

    @property
    def exit_code(self) -> int:
        """1 when training would fail: there are errors, or no rows at all."""
        return int(bool(self.errors) or self.rows == 0)

    def to_text(self, examples: int = 5) -> str:
        """The report as text, with up to `examples` rows for every kind of problem."""
        types = ", ".join(
            f"{count:,} {name}" + (f" ({self.bad[name]:,} bad)" if self.bad[name] else "")
            for name, count in self.types.most_common()
        )
        lines = [f"{self.rows:,} rows: {types or 'none readable'}; {self.images:,} images, {self.videos:,} videos"]
        if self.tokens:
            middle = statistics.median_low(self.tokens)
            lines.append(f"prompt tokens: {min(self.tokens):,} to {max(self.tokens):,}, median {middle:,}")
        for kind, title in _TITLES.items():
            found = [finding for finding in self.findings if finding.kind == kind]
            if found:
                lines += ["", f"{'ERROR' if kind in ERRORS else 'warning'}: {title}: {len(found):,}"]
                lines += [f"  {_printable(finding.message)}" for finding in found[:examples]]
                lines += [f"  … and {len(found) - examples:,} more"] * (len(found) > examples)
        for origin, prompt in self.shown:
            lines += ["", f"prompt of {_printable(origin)}:", *map(_printable, prompt.split("\n"))]
        lines.append("")
        if self.clean:
            lines.append(f"{self.kept:,} clean rows written to {self.clean}")
        bad = len({finding.origin for finding in self.errors})
        lines.append(f"training would fail: {bad:,} bad rows" if self.exit_code else "ready to train")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Asking:
    """How the training to come asks and scores; see `check_records`."""

    prompt: PromptSettings
    unscorable: Callable[[Record], str] = lambda record: ""
    processor: Any = None
    max_prompt_tokens: int | None = None


@dataclass(frozen=True)
class _Seen:
    """What one record showed when it was looked at; `ids` are the tokens of its prompt, [P]."""

    record: Record
    looks: list[Appearance]
    ids: Tensor | None
    findings: list[Finding]

    @property
    def is_good(self) -> bool:
        """Whether it may be trained on; of duplicates the first."""
        return not any(finding.is_error or finding.kind in ("duplicate", "leak") for finding in self.findings)


def check_records(
    records: Callable[[Callable[[DataError], None]], Iterable[Record]],
    *,
    unscorable: Callable[[Record], str] = lambda record: "",
    evaluation: Iterable[Record] = (),
    processor: Any = None,
    max_prompt_tokens: int | None = None,
    prompt: PromptSettings | None = None,
    show: int = 0,
    clean: str | Path | None = None,
    workers: int = 4,
    progress: Callable[[int], None] = lambda rows: None,
) -> CheckReport:
    """Check all records, `workers` at a time.

    Args:
        records: opens the data, given what to call with the error of each unreadable row:
            `lambda on_error: read_records(path, on_error=on_error)`.
        unscorable: why no answer could match the record's solution, or "": the scorer of the training to come.
        evaluation: records whose media must not be trained on.
        processor: of the model, to build prompts as training does and to count their tokens.
        max_prompt_tokens: the longest prompt the model and run allow.
        prompt: how prompts are made, as in the training to come; by default `PromptSettings()`.
        show: prompts to keep as text, from the first on; only a processor can make them.
        clean: a folder to write the good rows to, each once, with their media, as `data.jsonl`.
        progress: called with the number of rows done.
    """
    asking = _Asking(prompt or PromptSettings(), unscorable, processor, max_prompt_tokens)
    report = CheckReport(clean=Path(clean) if clean is not None else None)
    held_out = LookIndex()
    for seen in _in_order(evaluation, partial(_look_at, asking=_Asking(asking.prompt)), workers):
        for look in seen.looks:
            held_out.add(look, seen.record.origin)
    with closing(CleanCopy(report.clean)) if report.clean else nullcontext() as writer:
        try:
            rows = records(partial(_add_unreadable, report))
            for seen in _compared(_in_order(rows, partial(_look_at, asking=asking), workers), held_out):
                _add(report, seen)
                if seen.ids is not None and len(report.shown) < show:
                    report.shown.append((seen.record.origin, decode_prompt(processor, seen.ids)))
                if writer and seen.is_good:
                    writer.write(seen.record, [look.digest for look in seen.looks])
                    report.kept += 1
                progress(report.rows)
        except DataError as error:  # the source as a whole
            report.findings.append(Finding("row", str(error), str(error)))
    return report


def _add_unreadable(report: CheckReport, error: DataError) -> None:
    report.rows += 1
    report.findings.append(Finding("row", str(error), str(error)))


def _add(report: CheckReport, seen: _Seen) -> None:
    kind = seen.record.problem_type
    report.rows += 1
    report.types[kind] += 1
    report.bad[kind] += any(finding.is_error for finding in seen.findings)
    report.images += len(seen.record.images)
    report.videos += len(seen.record.videos)
    report.tokens += [] if seen.ids is None else [len(seen.ids)]
    report.findings += seen.findings


def _compared(rows: Iterable[_Seen], held_out: LookIndex) -> Iterator[_Seen]:
    """The rows with what is found in them when they are compared with those before, and with the evaluation's."""
    earlier = _Earlier()
    for seen in rows:
        yield replace(seen, findings=[*seen.findings, *earlier.compare(seen), *_leaks(seen, held_out)])


def _in_order(records: Iterable[Record], look_at: Callable[[Record], _Seen], workers: int) -> Iterator[_Seen]:
    """Yield `look_at` of each record, in order, with no more records in progress than the workers need."""
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[_Seen]] = deque()
        for record in records:
            under_way.append(pool.submit(look_at, record))
            if len(under_way) >= 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _look_at(record: Record, asking: _Asking) -> _Seen:
    findings: list[Finding] = []
    looks: list[Appearance] = []
    ids, settings = None, asking.prompt

    def found(kind: Kind, message: str) -> None:
        prefix = f"{record.origin}: "
        findings.append(Finding(kind, record.origin, prefix + message.removeprefix(prefix)))

    for image in record.images:
        try:
            looks.append(image_look(image, record.origin))
        except DataError as error:
            found("media", str(error))
    for video in record.videos:
        try:
            looks.append(video_look(video, record.origin, num_frames=settings.num_frames, fps=settings.fps))
        except DataError as error:
            found("media", str(error))
    if len(looks) == len(record.images) + len(record.videos):
        for box in record.boxes:
            if wrong := _misplaced(box, looks[box.medium].size):
                found("box", wrong)
    if strange := [c for c in record.problem + record.solution if _is_strange(c)]:
        found("text", f"contains the control character {strange[0]!r}; remove it if it is not meant")
    if reason := asking.unscorable(record):
        found("solution", f"{reason}; correct the solution or its problem type")
    if not any(finding.kind == "media" for finding in findings):
        try:
            if asking.processor is None:
                build_messages(record, settings)
            else:
                with ONE_VIDEO if record.videos else nullcontext():
                    encoded = encode_prompt(asking.processor, record, settings)
                    ids = encoded["input_ids"][0]
                    if unseen := _unseen(record, asking, encoded, findings):
                        found("unseen", unseen)
        except DataError as error:
            found("prompt", str(error))
        if ids is not None and asking.max_prompt_tokens is not None and len(ids) > asking.max_prompt_tokens:
            found(
                "tokens", f"{len(ids):,} tokens, more than {asking.max_prompt_tokens:,}; lower max_pixels or num_frames"
            )
    return _Seen(record, looks, ids, findings)


def _unseen(record: Record, asking: _Asking, encoded: Encoded, findings: list[Finding]) -> str:
    """What to know of a record whose prompt shows none of its boxes, or ""; one with misplaced boxes has been named."""
    if not record.boxes or any(finding.kind == "box" for finding in findings):
        return ""
    settings = asking.prompt
    if shown_media(record, asking.processor, settings.num_frames, settings.fps, encoded.tiles).boxes:
        return ""
    return (
        "the model sees none of its boxes: they are on frames that are not sampled, or where the processor crops the image; its "
        "evidence is not trained or measured. Raise num_frames or fps, or choose a model that is shown whole images"
    )


def _misplaced(box: Box, size: Size) -> str:
    """What is wrong with where a box lies, or ""."""
    try:
        share = float(box_coverage((1, 1), size, box)[0, 0])
    except DataError as error:
        return str(error)
    if share * size[0] * size[1] >= _LEAST_INSIDE * (box.x1 - box.x0) * (box.y1 - box.y0):
        return ""
    corners = f"({box.x0}, {box.y0}, {box.x1}, {box.y1})"
    return (
        f"box {corners} lies nearly all outside of its {size[0]}x{size[1]} medium: expected pixels of the original; "
        "correct it, or name the scale (box_scale)"
    )


def _is_strange(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Co", "Cs", "Cn") and character not in "\n\r\t"


class _Earlier:
    """The rows so far, to find those that ask again what one of them asked."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Any, ...], tuple[tuple[str, ...], str]] = {}
        self._looks: dict[tuple[Any, ...], LookIndex] = defaultdict(LookIndex)

    def compare(self, seen: _Seen) -> list[Finding]:
        """The same question with the same solution about the same media, or about a copy; or with another solution.

        Pictures that only look alike are not compared across solutions: a text line is a white strip like any other.
        """
        record = seen.record
        if any(finding.kind == "media" for finding in seen.findings):
            return []
        question = (" ".join(record.problem.split()), record.options, record.system, record.history)
        exact = (*question, *sorted(look.digest for look in seen.looks))
        solutions, first = self._rows.setdefault(exact, (record.solutions, record.origin))
        if first != record.origin:
            if solutions != record.solutions:
                return [_finding("conflict", record, f"asks what {first} asks, with another solution; correct one")]
            return [_finding("duplicate", record, f"the same as {first}; drop one")]
        if len(seen.looks) != 1:
            return []
        index = self._looks[*question, record.solutions]
        alike = index.find(seen.looks[0])
        index.add(seen.looks[0], record.origin)
        if alike is None:
            return []
        said = f"the same question as {alike[1]}, about a medium that looks the same; drop one"
        return [_finding("duplicate", record, said)]


def _finding(kind: Kind, record: Record, said: str) -> Finding:
    return Finding(kind, record.origin, f"{record.origin}: {said}")


def _leaks(seen: _Seen, held_out: LookIndex) -> list[Finding]:
    findings = []
    for look in seen.looks:
        if alike := held_out.find(look):
            how = "is" if alike[0].digest == look.digest else "looks like"
            said = f"a medium {how} one of the evaluation's ({alike[1]}); drop the row"
            findings.append(_finding("leak", seen.record, said))
    return findings


def _printable(text: str) -> str:
    """Data may hold terminal escapes; they are shown, not sent."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
