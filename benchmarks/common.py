"""What every benchmark shares: paired timing, peak memory in fresh processes, counted work, and results kept as JSON.

A benchmark is a function `build(setting, arm)` that makes one way of doing a piece of work; `compare` runs its arms.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from ral.files import atomic_write_text
from ral.runs.folder import environment
from ral.runs.machine import memory_peak_gib

RESULTS = Path(__file__).parent / "results"


def _attention_operations(query: Sequence[int], key: Sequence[int], *rest: Any, **more: Any) -> int:
    """Of Q·Kᵀ and its product with V, from shapes `[B, H, T, D]`."""
    batch, heads, queries, channels = query
    return 4 * batch * heads * queries * key[2] * channels


def _attention_backward_operations(grad: Sequence[int], *rest: Any, **more: Any) -> int:
    """Five products where the forward pass has two."""
    return _attention_operations(*rest) * 5 // 2


#: What the counter does not know: the fused attention of a CPU.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_operations,
}


@dataclass(frozen=True)
class Arm:
    """One way to do a piece of work.

    Attributes:
        run: does it once.
        items: what one run gets done, in the benchmark's `unit`.
        facts: figures of the arm that are kept with the result.
    """

    run: Callable[[], Any]
    items: int
    facts: Mapping[str, Any]


def compare(
    build: Callable[[Any, str], Arm], setting: Any, arms: Sequence[str], *, repeats: int, threads: int
) -> dict[str, Any]:
    """Time, memory and work of the arms, as the dict that is kept; every arm runs once before the clock does.

    Args:
        build: a module-level function, as it is also called in processes of their own.
        setting: what it is called with; a dataclass. arms: which ways of doing it.
    """
    torch.set_num_threads(threads)
    memory = {name: in_fresh_process(_peak, build, setting, name, threads) for name in arms}
    built = {name: build(setting, name) for name in arms}
    operations = {name: counted(arm.run) for name, arm in built.items()}
    peak = matmul_peak()
    seconds = interleaved_seconds({name: arm.run for name, arm in built.items()}, repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "threads": threads,
        "repeats": repeats,
        "seconds": median,
        "memory_gib": memory,
        "items_per_second": {name: arm.items / median[name] for name, arm in built.items()},
        "share_of_matmul_peak": {name: operations[name] / median[name] / peak for name in arms},
        "time_ratio": {
            own: {name: median_ratio(seconds[name], seconds[own]) for name in arms} for own in arms if is_ours(own)
        },
        "facts": {name: dict(arm.facts) for name, arm in built.items()},
        "matmul_peak_gflops": peak / 1e9,
        "all_seconds": seconds,
    }


def is_ours(arm: str) -> bool:
    return arm.startswith("ours")


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


def _peak(build: Callable[[Any, str], Arm], setting: Any, name: str, threads: int) -> float:
    """Over three steps: a first one alone differs by several per cent from process to process, three by one."""
    torch.set_num_threads(threads)
    run = build(setting, name).run

    def three_steps() -> None:
        for _ in range(3):
            run()

    return peak_over(three_steps)


def counted(step: Callable[[], Any]) -> int:
    """Floating-point operations of one step's matrix products and attention, causal attention counted as if it were full."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def matmul_peak(size: int = 1536, repeats: int = 7) -> float:
    """FLOP/s of the best of several float32 matrix products on the threads that are set."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(interleaved_seconds({"product": lambda: a @ b}, repeats)["product"])


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Keep a result with the commit, the versions and the class of machine it was measured on."""
    atomic_write_text(path, json.dumps({**result, "environment": environment()}, indent=2) + "\n")
