"""Batches of examples whose images have other sizes and numbers of tiles, for families whose processors make tiles or crops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from ral.data.record import Record
from ral.data.record_errors import WatchedRecords
from ral.training.sft import Examples, SFTSettings, WorkedExamplesTrainer
from tests.families.test_geometry import made, picture

KINDS = ("internvl", "gemma3", "idefics3", "mistral3", "llava_onevision")

#: Wide, small (one tile), none, and two of other shapes: no two have as many tiles.
SIZES = [[(100, 40)], [(14, 14)], [], [(40, 90), (60, 60)]]


def records() -> list[Record]:
    return [
        Record(
            str(i), "what is it? <image>" * len(sizes) or "what is it?", "red" + " and blue" * i, problem_type="free-form",
            images=tuple(Image.fromarray(picture(size, i)) for size in sizes),
        )
        for i, sizes in enumerate(SIZES)
    ]  # fmt: skip


def update_of(kind: str, folder: Path, batch: int) -> Tensor:
    """What one step on all records changes, in micro-batches of `batch`."""
    processor, model = made(kind)
    model.requires_grad_(True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in name or "text_model" in name)
    args = SFTSettings(
        output_dir=str(folder), use_cpu=True, template="plain", think=False, optim="sgd", learning_rate=1e-2, max_steps=1,
        max_grad_norm=0.0, per_device_train_batch_size=batch, gradient_accumulation_steps=len(SIZES) // batch,
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    examples = Examples(processor, WatchedRecords(records()), args)
    numbers = Dataset.from_dict({"number": range(len(SIZES))})
    trainer = WorkedExamplesTrainer(
        model, args, data_collator=examples, train_dataset=numbers, processing_class=processor
    )
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    trainer.train()
    return torch.cat([(weight.detach() - old).flatten() for weight, old in zip(weights, before, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_micro_batches_are_a_larger_batch(kind: str, tmp_path: Path) -> None:
    together, one_by_one = (update_of(kind, tmp_path / str(size), size) for size in (4, 1))
    assert together.norm() > 1e-3
    assert (together - one_by_one).norm() < 1e-4 * together.norm()
