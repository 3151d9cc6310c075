"""Makes the start checkpoint: `python -m experiments.testbed.pretrain --output DIR` (about ten minutes on a CPU).

Supervised learning on captions, direct answers and `<think>row 2 col 3</think><answer>purple</answer>`, stopped as soon
as the model is right about half of the time: the groups of its rollouts are then mostly mixed, which is what
reinforcement needs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForImageTextToText

from experiments.testbed.batch import Turn, encode_turns
from experiments.testbed.measure import complete, score
from ral.testbed.model import build_model, build_processor
from ral.testbed.rings import Scene, ring_records, ring_scenes

_HELD_OUT_SEED = 999


@dataclass(frozen=True)
class Pretraining:
    """Settings of one run. `stop_at` is the greedy accuracy, in the think format, at which training ends."""

    layers: int = 2
    seed: int = 0
    steps: int = 1_500
    batch_size: int = 48
    learning_rate: float = 1e-3
    warmup: int = 50
    stop_at: float = 0.57
    check_every: int = 25
    held_out: int = 300


def pretrain(settings: Pretraining, start: Path | None = None) -> tuple[Any, Any]:
    """Trains from scratch, or on from the checkpoint `start`; returns `(model, processor)`.

    Raises `RuntimeError` when `stop_at` is not reached within `steps`.
    """
    processor = build_processor()
    model: Any
    if start is None:
        model = build_model(processor, layers=settings.layers, seed=settings.seed)
    else:
        model = AutoModelForImageTextToText.from_pretrained(start, local_files_only=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / settings.warmup))
    held_out = ring_records(settings.held_out, _HELD_OUT_SEED)
    began = time.perf_counter()
    for step in range(1, settings.steps + 1):
        scenes = ring_scenes(settings.batch_size, seed=(settings.seed + 1) * 1_000_000 + step)
        inputs, labels = lessons(processor, scenes)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % settings.check_every == 0:
            think = score(complete(model, processor, held_out, think=True), held_out, think=True)
            direct = score(complete(model, processor, held_out, think=False), held_out, think=False)
            print(
                f"step {step} {time.perf_counter() - began:.0f}s loss {loss.item():.3f} think {think['accuracy']:.3f} "
                f"direct {direct['accuracy']:.3f} format {think['format']:.3f}",
                flush=True,
            )
            if think["accuracy"] >= settings.stop_at:
                return model, processor
    raise RuntimeError(
        f"accuracy {settings.stop_at} not reached in {settings.steps} steps; give more steps or another seed"
    )


def lessons(processor: Any, scenes: list[Scene]) -> tuple[dict[str, Tensor], Tensor]:
    """One batch: of every four scenes one is described, one answered directly and two with thinking.

    Returns the model's inputs and labels `[B, T]`, which count the completion and its end alone (elsewhere −100).
    """
    turns = [(_caption, _direct, _think, _think)[i % 4](scene) for i, scene in enumerate(scenes)]
    turns = [turn._replace(completion=turn.completion + "<|im_end|>") for turn in turns]
    inputs = encode_turns(processor, turns, "right")
    lengths = inputs["attention_mask"].sum(1, keepdim=True)
    taught = torch.tensor([[len(processor.tokenizer.encode(turn.completion))] for turn in turns])
    position = torch.arange(inputs["input_ids"].shape[1])
    counted = (position >= lengths - taught) & (position < lengths)
    return inputs, inputs["input_ids"].masked_fill(~counted, -100)


def _caption(scene: Scene) -> Turn:
    told = "".join(f"row {ring.row} col {ring.col} {ring.colour} {ring.inside}\n" for ring in scene.rings)
    return Turn(replace(scene.record(), problem="describe the image: <image>"), False, told)


def _direct(scene: Scene) -> Turn:
    record = scene.record()
    return Turn(record, False, record.solution)


def _think(scene: Scene) -> Turn:
    record = scene.record()
    return Turn(record, True, f"<think>{record.trace}</think><answer>{record.solution}</answer>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for model and processor")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from; from scratch by default")
    for name, default in vars(Pretraining()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    settings = vars(parser.parse_args())
    output, start = settings.pop("output"), settings.pop("start")
    model, processor = pretrain(Pretraining(**settings), start)
    model.save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
