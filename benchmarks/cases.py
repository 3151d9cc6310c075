"""What the benchmarks work on: a random model and noise for it to see, of any size, the same from one seed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ral.attention.models import special_visual_token_ids
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.testbed.episodes import encode_video
from ral.testbed.model import build_model, build_processor

#: Nobody may sample it, and it is made the end of a sequence: every completion then reaches its full length.
NEVER_SAMPLED = "<|vision_start|>"


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement.

    Attributes:
        image_size: of one image or frame in pixels a side; it becomes (image_size / 8)² visual tokens.
        images: per prompt. frames: of a video in place of the images; two frames have the tokens of one image.
        completion_tokens: of every completion. group: completions per prompt. prompts: at once.
        layers, hidden: of the decoder. think: the longer instruction.
    """

    image_size: int = 240
    images: int = 1
    frames: int = 0
    completion_tokens: int = 16
    group: int = 8
    prompts: int = 1
    layers: int = 2
    hidden: int = 128
    think: bool = True


@dataclass(frozen=True)
class Case:
    """The model, its processor and the records of a setting. The vision tower is frozen."""

    setting: Setting
    model: PreTrainedModel
    processor: ProcessorMixin
    records: list[Record]

    @cached_property
    def inputs(self) -> list[dict[str, Tensor]]:
        """Per record the processor's dict for its prompt (`input_ids [1, P]`)."""
        return [self.encode(record) for record in self.records]

    @property
    def prompt_tokens(self) -> int:
        return self.inputs[0]["input_ids"].shape[1]

    def encode(self, record: Record) -> dict[str, Tensor]:
        setting = self.setting
        frames = setting.frames or None
        return encode_prompt(
            self.processor, record, think=setting.think, max_pixels=setting.image_size**2, num_frames=frames
        )

    def generate(self, encoded: list[dict[str, Tensor]], **how: Any) -> Tensor:
        """transformers' `generate` on prompts of equal length as one batch: `[N, P+R]`, no visual token among the R."""
        tokens = self.setting.completion_tokens
        return self.model.generate(
            **{name: torch.cat([inputs[name] for inputs in encoded]) for name in encoded[0]},
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            suppress_tokens=list(special_visual_token_ids(self.model)),
            **how,
        )


def build_case(setting: Setting, seed: int = 0) -> Case:
    processor = build_processor()
    tokenizer = processor.tokenizer
    tokenizer.eos_token = NEVER_SAMPLED
    model = build_model(processor, layers=setting.layers, hidden=setting.hidden, seed=seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.model.visual.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    return Case(setting, model, processor, [noise_record(setting, generator) for _ in range(setting.prompts)])


def noise_record(setting: Setting, generator: torch.Generator) -> Record:
    """A question about images, or one video, of noise."""
    shape = (setting.frames or setting.images, setting.image_size, setting.image_size, 3)
    pictures = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).numpy()
    if not setting.frames:
        return Record(
            "noise", "what colour is inside the red ring?", "blue", images=tuple(map(Image.fromarray, pictures))
        )
    video = Path(tempfile.mkdtemp()) / "noise.mp4"
    video.write_bytes(encode_video(pictures))
    return Record("noise", "what colour is inside the red ring?", "blue", videos=(video,))
