"""Everything that `ral` says of GPUs, measured on one GPU of 80 GB by one command, in less than eight minutes.

    python -m benchmarks.gpu                 # prints JSON lines; writes benchmarks/results/gpu.jsonl and gpu.md
    python -m benchmarks.gpu --dry           # the same code on the CPU, with tiny sizes; its figures mean nothing

Sections stand alone: one that fails is reported and does not stop the next. A section is left out when the time that it may need is not
there, and is stopped when it takes longer. `benchmarks/gpu_sections.py` holds them. The exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.common import RESULTS
from benchmarks.gpu_sections import SECTIONS, Bench, Section
from ral.files import atomic_write_text
from ral.runs.folder import environment

#: Seconds that all sections have together.
LIMIT = 460.0
#: A CPU may take so many times longer, and nobody waits for it.
PATIENCE = 10


@dataclass(frozen=True)
class Outcome:
    """What came of a section.

    Attributes:
        ok: None where it was left out. said: why it failed or was left out. figures: one dict per measurement.
    """

    section: str
    ok: bool | None
    seconds: float
    said: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)


def measure(section: Section, bench: Bench, left: float) -> Outcome:
    """Run a section in at most `section.seconds`, if `left` seconds are enough for it."""
    if left < section.seconds:
        return Outcome(section.name, None, 0.0, f"needs up to {section.seconds:.0f} s, {left:.0f} s are left")
    if (reason := section.unavailable(bench)) is not None:
        return Outcome(section.name, None, 0.0, reason)
    start, figures, said = time.perf_counter(), [], ""
    try:
        with alarm(section.seconds):
            for figure in section.run(bench):
                figures.append(figure)
    except Exception as error:  # whatever it is, the next section may work
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    ok = not said and all(figure.get("ok", True) for figure in figures)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Outcome(section.name, ok, time.perf_counter() - start, said, figures)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def page(outcomes: Sequence[Outcome], machine: dict[str, Any]) -> str:
    """The outcomes as Markdown."""
    lines = ["# On one GPU", "", "Written by `python -m benchmarks.gpu`.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    for outcome in outcomes:
        state = {True: "held", False: "**failed**", None: "left out"}[outcome.ok]
        lines += ["", f"## {outcome.section}: {state}, {outcome.seconds:.0f} s", ""]
        if outcome.said:
            lines += [outcome.said, ""]
        for columns in dict.fromkeys(tuple(figure) for figure in outcome.figures):
            rows = [figure for figure in outcome.figures if tuple(figure) == columns]
            lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_cell(row[name]) for name in columns) + " |" for row in rows] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--sections", nargs="+", default=[s.name for s in SECTIONS], choices=[s.name for s in SECTIONS])
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "gpu", help="without suffix: .jsonl and .md are written"
    )
    asked = parser.parse_args(arguments)
    if not asked.dry and not torch.cuda.is_available():
        parser.error("no CUDA device; --dry runs the same code on the CPU")
    bench, start, outcomes = Bench(asked.dry), time.perf_counter(), []
    machine = environment() | {"gpu": "none (dry)" if asked.dry else torch.cuda.get_device_name()}
    for section in SECTIONS:
        if section.name in asked.sections:
            given = replace(section, seconds=section.seconds * (PATIENCE if asked.dry else 1))
            left = LIMIT * (PATIENCE if asked.dry else 1) - (time.perf_counter() - start)
            outcomes.append(measure(given, bench, left))
            print(json.dumps(asdict(outcomes[-1]), default=str), flush=True)
    failed = [outcome.section for outcome in outcomes if outcome.ok is False]
    left_out = [outcome.section for outcome in outcomes if outcome.ok is None]
    summary = {"seconds": time.perf_counter() - start, "failed": failed, "left_out": left_out, "machine": machine}
    print(json.dumps(summary, default=str), flush=True)
    lines = [*(asdict(outcome) for outcome in outcomes), summary]
    atomic_write_text(asked.output.with_suffix(".jsonl"), "".join(json.dumps(x, default=str) + "\n" for x in lines))
    atomic_write_text(asked.output.with_suffix(".md"), page(outcomes, machine))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
