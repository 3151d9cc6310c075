"""What every benchmark shares: interleaved timing, peak memory in fresh processes, and results kept as JSON."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from ral.resources import memory_peak_gib
from ral.runs import environment

RESULTS = Path(__file__).parent / "results"


def interleaved_seconds(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall-clock of every step, `repeats` times, in turn: what else the machine does then meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over rounds of the ratio inside one round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module-level function in a process of its own.

    Linux hands a process the peak of the one that started it, so measure memory before the caller grows.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def peak_over(step: Callable[[], Any]) -> float:
    """GiB by which a step raises this process's peak over what is resident before it."""
    before = psutil.Process().memory_info().rss / 2**30
    step()
    return memory_peak_gib() - before


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Keep a result with the commit, the versions and the class of machine it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**result, "environment": environment()}, indent=2) + "\n", encoding="utf-8")
