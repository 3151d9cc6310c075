"""Supervised cold starts on worked examples: `python -m experiments.testbed.cold_start --output DIR` (minutes on a CPU).

A run that was cut off goes on, exactly, from the last `SAVED`-th step with the same command.

Teaches the embedded start model tasks it has not seen, far enough for the groups of its rollouts to be mixed. Examples are
asked and encoded as in reinforcement, and go through the same packed forward, so images, videos and text can be mixed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForImageTextToText, AutoProcessor

from ral.attention import forward_groups, prepare_prompt, vision_features
from ral.data.prompt import encode_completion, encode_prompt
from ral.data.record import Record
from ral.testbed import start_checkpoint
from ral.testbed.model import build_text_model, build_tokenizer
from ral.testbed.needles import recital_records
from ral.testbed.sets import COLD_START_SEED, SETS, Draw

#: What can be taught: the testbed's sets, and texts that are recited.
SOURCES: dict[str, Draw] = {**{name: one.worked for name, one in SETS.items()}, "recitals": recital_records}
#: What `--start` calls a new text model.
TEXT = "text"

#: Steps between two states of a run in `DIR/unfinished.pt`.
SAVED = 10

_VISION_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


@dataclass(frozen=True)
class ColdStart:
    """Settings of one run; the learning rate rises for `warmup` steps and then falls in a line to a twentieth.

    `examples` are drawn from every source; `min_pixels` and `max_pixels` bound one image or frame, `fps` samples the videos.
    """

    examples: int = 3_072
    seed: int = 0
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 20
    min_pixels: int = 32 * 32
    max_pixels: int = 32 * 32
    fps: float = 1.0


def cold_start(
    model: Any, processor: Any, records: Sequence[Record], settings: ColdStart, unfinished: Path | None = None
) -> Iterator[tuple[int, float]]:
    """Trains `model` in place to write each record's trace and answer, or its answer alone where it has no trace; yields the
    number, from 1, and the loss of every step. `unfinished` keeps the run's state, and begins with it if it is there.

    The loss is the mean negative log-likelihood of a batch's completion tokens, their end included, in nats. The vision
    tower is trained, too. Raises DataError for records that cannot be encoded.
    """
    encoded = [encode_example(processor, record, settings) for record in records]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / settings.warmup) * max(0.05, 1 - step / settings.steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(settings.seed)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if unfinished is not None and unfinished.exists():
        state = torch.load(unfinished, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        done = state["done"]
    model.train()
    for step in range(done + 1, settings.steps + 1):
        drawn = torch.randint(len(encoded), (settings.batch_size,), generator=generator).tolist()
        loss = example_loss(model, [encoded[index] for index in drawn])
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if unfinished is not None and step % SAVED == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state | {"generator": generator.get_state(), "done": step}, unfinished.with_suffix(".new"))
            unfinished.with_suffix(".new").replace(unfinished)
        yield step, loss.item()


def example_loss(model: Any, examples: Sequence[tuple[dict[str, Tensor], Tensor]]) -> Tensor:
    """Mean negative log-likelihood (nats) of the completions' tokens `[R_i]` behind their prompts' inputs."""
    prompts = [prepare_prompt(model, inputs, features={}) for inputs, _ in examples]
    # One pass of the vision tower for the whole batch: every prompt gets its own share.
    names = [name for name in _VISION_INPUTS if any(name in inputs for inputs, _ in examples)]
    pixels = {name: torch.cat([inputs[name] for inputs, _ in examples if name in inputs]) for name in names}
    found = vision_features(model, pixels)
    pieces = {modality: iter(output.pooler_output) for modality, output in found.items()}  # one of each image or video
    prompts = [
        replace(prompt, features={
            modality: type(output)(pooler_output=tuple(islice(pieces[modality], len(inputs[f"{modality}_grid_thw"]))))
            for modality, output in found.items()
            if f"{modality}_grid_thw" in inputs
        })
        for prompt, (inputs, _) in zip(prompts, examples, strict=True)
    ]  # fmt: skip
    outputs = forward_groups(model, prompts, [[completion] for _, completion in examples], layers=())
    total = torch.stack([output.logps.sum() for output in outputs]).sum()
    return -total / sum(len(completion) for _, completion in examples)


def encode_example(processor: Any, record: Record, settings: ColdStart) -> tuple[dict[str, Tensor], Tensor]:
    """A record's prompt as the processor's dict, and the completion `[R]` it is to be answered with, its end included."""
    think = record.trace is not None
    inputs = encode_prompt(
        processor,
        record,
        think=think,
        template="plain",
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        fps=settings.fps,
    )
    return inputs, encode_completion(processor, record, think=think)


def _begin(start: str, seed: int) -> tuple[Any, Any]:
    """Model and processor (of a text model: tokenizer) to be trained."""
    if start == TEXT:
        tokenizer = build_tokenizer()
        return build_text_model(tokenizer, seed=seed), tokenizer
    model = AutoModelForImageTextToText.from_pretrained(start, local_files_only=True)
    return model, AutoProcessor.from_pretrained(start, local_files_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for model and processor")
    parser.add_argument(
        "--start", default=str(start_checkpoint()), help=f"checkpoint to begin with; {TEXT!r}: a new text model"
    )
    parser.add_argument("--data", nargs="+", choices=SOURCES, default=["episodes"], help="what to teach")
    for field in fields(ColdStart):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    output, start, data = given.pop("output"), given.pop("start"), given.pop("data")
    settings = ColdStart(**given)
    model, processor = _begin(start, settings.seed)
    records = [record for name in data for record in SOURCES[name](settings.examples, COLD_START_SEED + settings.seed)]
    began = time.perf_counter()
    unfinished = output / "unfinished.pt"
    for step, loss in cold_start(model, processor, records, settings, unfinished):
        if step % 25 == 0:
            print(f"step {step} {time.perf_counter() - began:.0f}s loss {loss:.3f}", flush=True)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
