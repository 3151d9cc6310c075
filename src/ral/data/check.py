"""`ral check`: what is wrong with a data set, before hours are spent on it.

Every row is read, every image and video decoded, every prompt built as training would build it, every solution read
by the scorer that training will use; duplicates, and media shared with evaluation data, are found by their bytes and by
how they look. Hostile files are reported like any others: decoding is bounded in pixels, formats and rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import threading
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ral.data.media import load_image, load_video
from ral.data.prompt import build_messages, encode_prompt
from ral.data.record import Record
from ral.data.settings import PromptSettings
from ral.errors import DataError

Kind = Literal["row", "media", "prompt", "tokens", "solution", "text", "duplicate", "leak"]

_TITLES: dict[Kind, str] = {
    "row": "rows that cannot be read",
    "media": "images and videos that cannot be decoded",
    "prompt": "rows that give no prompt",
    "tokens": "prompts above the model's budget",
    "solution": "solutions that no answer can match",
    "text": "suspicious text",
    "duplicate": "duplicates",
    "leak": "media shared with evaluation data",
}
#: Training would fail on these, or learn nothing from them; the rest are warnings.
ERRORS: frozenset[Kind] = frozenset({"row", "media", "prompt", "tokens", "solution"})

#: Bits by which two 64-bit difference hashes may differ, and steps by which mean colours (0–255) may, to look alike.
_HASH_BITS, _COLOUR_STEPS = 3, 6
#: One video in memory at a time: a clip may take half a gigabyte.
_one_video = threading.Lock()


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
    `tokens` holds the prompt lengths, where a processor was given."""

    rows: int = 0
    types: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    images: int = 0
    videos: int = 0
    tokens: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
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
        lines.append("")
        if self.clean:
            lines.append(f"{self.kept:,} clean rows written to {self.clean}")
        bad = len({finding.origin for finding in self.errors})
        lines.append(f"training would fail: {bad:,} bad rows" if self.exit_code else "ready to train")
        return "\n".join(lines)


@dataclass(frozen=True)
class Look:
    """How a medium is recognised: `digest` of its bytes (or pixels), `bits` of its difference hash, mean `colour`."""

    digest: str
    bits: int
    colour: tuple[float, float, float]

    def resembles(self, other: Look) -> bool:
        return self.digest == other.digest or (
            (self.bits ^ other.bits).bit_count() <= _HASH_BITS
            and all(abs(a - b) <= _COLOUR_STEPS for a, b in zip(self.colour, other.colour, strict=True))
        )


class LookIndex:
    """Finds among many looks those that resemble a new one, by the four quarters of their hashes.

    Two hashes that differ in at most three bits agree in at least one quarter.
    """

    def __init__(self) -> None:
        self._quarters: dict[tuple[int, int], list[tuple[Look, str]]] = defaultdict(list)

    def add(self, look: Look, owner: str) -> None:
        for key in self._keys(look):
            self._quarters[key].append((look, owner))

    def find(self, look: Look) -> tuple[Look, str] | None:
        for key in self._keys(look):
            for other, owner in self._quarters[key]:
                if look.resembles(other):
                    return other, owner
        return None

    @staticmethod
    def _keys(look: Look) -> list[tuple[int, int]]:
        return [(i, look.bits >> 16 * i & 0xFFFF) for i in range(4)]


@dataclass(frozen=True)
class _Seen:
    """What one record showed when it was looked at."""

    record: Record
    looks: list[Look]
    tokens: int | None
    findings: list[Finding]


def check_records(
    records: Callable[[Callable[[DataError], None]], Iterable[Record]],
    *,
    unscorable: Callable[[Record], str] = lambda record: "",
    evaluation: Iterable[Record] = (),
    processor: Any = None,
    max_prompt_tokens: int | None = None,
    prompt: PromptSettings | None = None,
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
        clean: a folder to write the good rows to, each once, with their media, as `data.jsonl`.
        progress: called with the number of rows done.
    """
    settings = prompt or PromptSettings()
    report = CheckReport(clean=Path(clean) if clean is not None else None)
    seen_rows: dict[tuple[Any, ...], str] = {}
    seen_questions: dict[tuple[Any, ...], LookIndex] = defaultdict(LookIndex)

    def unreadable(error: DataError) -> None:
        report.rows += 1
        report.findings.append(Finding("row", str(error), str(error)))

    def look_at(record: Record) -> _Seen:
        return _look_at(record, unscorable, processor, max_prompt_tokens, settings)

    held_out = LookIndex()
    for seen in _in_order(evaluation, lambda r: _look_at(r, lambda _: "", None, None, settings), workers):
        for look in seen.looks:
            held_out.add(look, seen.record.origin)
    writer = _CleanCopy(report.clean) if report.clean else None
    try:
        for seen in _in_order(records(unreadable), look_at, workers):
            report.rows += 1
            report.types[seen.record.problem_type] += 1
            report.images += len(seen.record.images)
            report.videos += len(seen.record.videos)
            report.tokens += [seen.tokens] if seen.tokens is not None else []
            duplicate = _duplicate(seen, seen_rows, seen_questions)
            findings = [*seen.findings, *duplicate, *_leaks(seen, held_out)]
            report.findings += findings
            report.bad[seen.record.problem_type] += any(finding.is_error for finding in findings)
            if writer and not any(f.is_error or f.kind in ("duplicate", "leak") for f in findings):
                writer.write(seen)
                report.kept += 1
            progress(report.rows)
    except DataError as error:  # the source as a whole
        report.findings.append(Finding("row", str(error), str(error)))
    finally:
        if writer:
            writer.close()
    return report


def _in_order(records: Iterable[Record], look_at: Callable[[Record], _Seen], workers: int) -> Iterator[_Seen]:
    """What `look_at` says of each record, in order, with no more records under way than the workers need."""
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[_Seen]] = deque()
        for record in records:
            under_way.append(pool.submit(look_at, record))
            if len(under_way) >= 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _look_at(
    record: Record,
    unscorable: Callable[[Record], str],
    processor: Any,
    max_prompt_tokens: int | None,
    settings: PromptSettings,
) -> _Seen:
    findings: list[Finding] = []
    looks: list[Look] = []
    tokens = None

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
            looks.append(video_look(video, settings, record.origin))
        except DataError as error:
            found("media", str(error))
    if strange := [c for c in record.problem + record.solution if _is_strange(c)]:
        found("text", f"contains the control character {strange[0]!r}; remove it if it is not meant")
    if reason := unscorable(record):
        found("solution", f"{reason}; correct the solution or its problem type")
    if not any(finding.kind == "media" for finding in findings):
        try:
            if processor is None:
                build_messages(record, settings.think)
            else:
                with _one_video if record.videos else nullcontext():
                    tokens = encode_prompt(processor, record, settings)["input_ids"].shape[-1]
        except DataError as error:
            found("prompt", str(error))
        if tokens is not None and max_prompt_tokens is not None and tokens > max_prompt_tokens:
            found("tokens", f"{tokens:,} tokens, more than {max_prompt_tokens:,}; lower max_pixels or num_frames")
    return _Seen(record, looks, tokens, findings)


def _is_strange(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Co", "Cs", "Cn") and character not in "\n\r\t"


def image_look(source: Path | Image.Image, origin: str = "") -> Look:
    """Decode an image and say how it is recognised. Raises `DataError` if it cannot be decoded."""
    image = load_image(source, origin)
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return Look(digest, *_difference_hash(image))


def video_look(path: Path, settings: PromptSettings, origin: str = "") -> Look:
    """Decode a video's frames as training would and say how it is recognised: by its bytes and its middle frame."""
    with _one_video:
        video = load_video(path, num_frames=settings.num_frames, fps=settings.fps, origin=origin)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return Look(digest.hexdigest(), *_difference_hash(Image.fromarray(video.frames[len(video.frames) // 2])))


def _difference_hash(image: Image.Image) -> tuple[int, tuple[float, float, float]]:
    """64 bits, one per cell of an 8 × 8 grid: is it darker than its right neighbour?; and the mean colour."""
    small = np.asarray(image.resize((9, 8), Image.Resampling.BOX), dtype=np.float64)
    grey = small.mean(axis=2)
    bits = int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")
    red, green, blue = small.mean(axis=(0, 1))
    return bits, (float(red), float(green), float(blue))


def _duplicate(
    seen: _Seen, rows: dict[tuple[Any, ...], str], questions: dict[tuple[Any, ...], LookIndex]
) -> list[Finding]:
    """The same question about the same media, or about media that look the same."""
    record = seen.record
    question = (" ".join(record.problem.split()), record.options)
    exact = (*question, *sorted(look.digest for look in seen.looks))
    if any(finding.kind == "media" for finding in seen.findings):
        return []
    first = rows.setdefault(exact, record.origin)
    if first != record.origin:
        return [Finding("duplicate", record.origin, f"{record.origin}: the same as {first}; drop one")]
    findings = []
    if len(seen.looks) == 1:
        index = questions[question]
        if alike := index.find(seen.looks[0]):
            message = f"{record.origin}: the same question as {alike[1]}, about a medium that looks the same; drop one"
            findings.append(Finding("duplicate", record.origin, message))
        index.add(seen.looks[0], record.origin)
    return findings


def _leaks(seen: _Seen, held_out: LookIndex) -> list[Finding]:
    findings = []
    for look in seen.looks:
        if alike := held_out.find(look):
            how = "is" if alike[0].digest == look.digest else "looks like"
            message = f"{seen.record.origin}: a medium {how} one of the evaluation's ({alike[1]}); drop the row"
            findings.append(Finding("leak", seen.record.origin, message))
    return findings


def _printable(text: str) -> str:
    """Data may hold terminal escapes; they are shown, not sent."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _CleanCopy:
    """Writes good records with their media into a folder that `read_records` reads."""

    def __init__(self, folder: Path):
        (folder / "media").mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = (folder / "data.jsonl").open("w", encoding="utf-8")

    def write(self, seen: _Seen) -> None:
        record = seen.record
        names = iter(look.digest[:20] for look in seen.looks)
        row: dict[str, Any] = {
            **record.extra,
            "id": record.id,
            "problem": record.problem,
            "solution": record.solution,
            "problem_type": record.problem_type,
            "options": record.options,
            "images": [self._keep(image, next(names)) for image in record.images],
            "videos": [self._keep(video, next(names)) for video in record.videos],
            "boxes": [asdict(box) for box in record.boxes],
            "trace": record.trace,
        }
        self._file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    def _keep(self, medium: Path | Image.Image, name: str) -> str:
        suffix = medium.suffix if isinstance(medium, Path) else ".png"
        place = self.folder / "media" / (name + suffix)
        if not place.exists():
            if isinstance(medium, Path):
                _link(medium, place)
            else:
                load_image(medium).save(place)
        return f"media/{place.name}"

    def close(self) -> None:
        self._file.close()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
