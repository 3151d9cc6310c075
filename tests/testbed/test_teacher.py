"""The shipped teacher: better than the start, of the start's tokens, and small as shipped."""

from __future__ import annotations

from pathlib import Path

import torch
from experiments.testbed.half_precision import to_half_precision
from experiments.testbed.measure import complete, score

from ral.models.loading import load_model, load_processor
from ral.testbed import load_start, model_name, teacher_checkpoint
from ral.testbed.rings import ring_records
from ral.training.distillation import check_same_tokens

RECORDS = ring_records(64, seed=2_000)


def test_it_goes_by_name_and_is_small() -> None:
    assert model_name("rings-teacher") == str(teacher_checkpoint())
    assert model_name("somebody/model") == "somebody/model"
    assert sum(file.stat().st_size for file in teacher_checkpoint().iterdir()) < 1.6e6


def test_it_knows_the_answers_and_reads_the_starts_tokens() -> None:
    model, processor = load_model(teacher_checkpoint()), load_processor(teacher_checkpoint())
    assert model.dtype == torch.float32
    check_same_tokens(load_start()[1], processor)
    found = score(complete(model, processor, RECORDS, think=True), RECORDS, think=True)
    assert found["format"] == 1
    assert found["accuracy"] >= 0.95


def test_halving_rounds_the_file_and_not_the_type(tmp_path: Path) -> None:
    model, processor = load_start()
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    to_half_precision(tmp_path / "whole", tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.51 * sizes[0]
    again = load_model(tmp_path / "half")
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].half().float()), name
