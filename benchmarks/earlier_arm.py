"""One arm of `benchmarks.earlier`: does the same work as often as it is told to, with the source on its path.

It imports only what both commits have.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from benchmarks.cases import Setting, build_case
from ral import RALConfig, RALTrainer
from ral.testbed import load_start
from ral.testbed.episodes import episode_records, told_records
from ral.testbed.rings import ring_records

Seconds = dict[str, float]


def varied_reward(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Differs inside every group, and costs nothing."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def trainer(model: Any, processor: Any, records: list[Any], **settings: Any) -> RALTrainer:
    args = RALConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, save_strategy="no", disable_tqdm=True, report_to=[],
        gradient_norm_steps=0, num_generations=8, per_device_train_batch_size=8, **settings,
    )  # fmt: skip
    made = RALTrainer(model, args, records, reward_funcs=varied_reward, processing_class=processor)
    made.remove_callback(PrinterCallback)
    return made


def whole_step(prompts: int, tokens: int) -> Callable[[], Seconds]:
    """A rollout batch of as many prompts, a micro-batch each, and its two updates. No completion ends before `tokens`."""
    setting = Setting(image_size=64, completion_tokens=tokens, prompts=prompts)
    case = build_case(setting)
    run = trainer(
        case.model, case.processor, case.records, gradient_accumulation_steps=prompts, num_iterations=2, max_steps=2,
        max_completion_length=tokens, temperature=1.0, learning_rate=1e-6, logging_steps=2, max_pixels=64**2,
    )  # fmt: skip
    sampling = sampling_clock = 0.0
    where = next(module for name in ("ral.rollouts.engine", "ral.trainer") if (module := _found(name)) is not None)
    inner = where.sample

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal sampling, sampling_clock
        started, clock = time.process_time(), time.perf_counter()
        try:
            return inner(*arguments, **named)
        finally:
            sampling += time.process_time() - started
            sampling_clock += time.perf_counter() - clock

    where.sample = timed

    def once() -> Seconds:
        nonlocal sampling, sampling_clock
        sampling, sampling_clock, started, clock = 0.0, 0.0, time.process_time(), time.perf_counter()
        run.train()
        seconds, step_clock = time.process_time() - started, time.perf_counter() - clock
        return {"step": seconds, "rollouts": sampling, "step_clock": step_clock, "rollouts_clock": sampling_clock}

    return once


def evaluation(records: int) -> Callable[[], Seconds]:
    """The most likely answers to records of three kinds, of different lengths, by the start model."""
    model, processor = load_start()
    third = records // 3
    asked = [*ring_records(third, 1), *episode_records(third, 1), *told_records(records - 2 * third, 1)]
    run = trainer(model, processor, asked, template="plain", max_completion_length=48, fps=1.0, num_frames=6)

    def once() -> Seconds:
        started = time.process_time()
        run.evaluate(asked)
        return {"evaluation": time.process_time() - started}

    return once


def _found(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def main() -> None:
    threads, prompts, tokens, records = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    pieces = [whole_step(prompts, tokens), evaluation(records)]
    for piece in pieces:  # before the clock does
        piece()
    print("READY", flush=True)
    for _ in sys.stdin:
        print("SECONDS " + json.dumps({name: value for piece in pieces for name, value in piece().items()}), flush=True)


if __name__ == "__main__":
    main()
