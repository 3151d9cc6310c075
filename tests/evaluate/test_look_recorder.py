"""Looks during training, on the shipped start checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ral.config import RALConfig
from ral.evaluate.look_recorder import LookRecorder
from ral.files import read_jsonl
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.trainer import RALTrainer

SETTINGS = {
    "template": "plain", "num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 16, "max_steps": 4,
    "beta": 0.0, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 2,
    "num_iterations": 2, "attention_coef": 0.0, "temperature": 1.0, "gradient_norm_steps": 0,
}  # fmt: skip


def trained(folder: Path, *callbacks: LookRecorder, resume: str | None = None) -> RALTrainer:
    model, processor = load_start()
    args = RALConfig(output_dir=str(folder), **SETTINGS)
    trainer = RALTrainer(
        model, args, train_dataset=ring_records(8, seed=1), processing_class=processor, callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def looks(folder: Path) -> list[dict]:
    return list(read_jsonl(folder / "looks" / "items.jsonl"))


def test_looks_are_taken_along_training_and_leave_it_as_it_is(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    recorder = LookRecorder(ring_records(3, seed=-1), every=3)
    watched = trained(tmp_path / "watched", recorder)
    for before, after in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(before, after)

    rows = looks(tmp_path / "watched")
    assert [row["step"] for row in rows] == [0] * 3 + [3] * 3 + [4] * 3
    assert {row["id"] for row in rows} == {record.id for record in ring_records(3, seed=-1)}
    for row in rows:
        assert row["map"]["grid"] == [8, 8]
        assert (tmp_path / "watched" / "looks" / row["image"]).is_file()
        assert "<image>" not in row["question"]
    assert rows[0]["map"] != rows[6]["map"], "the model has changed"

    # A run that goes on from step 2 takes the later looks anew.
    resumed = LookRecorder(ring_records(3, seed=-1), every=3)
    trained(tmp_path / "watched", resumed, resume=str(tmp_path / "watched" / "checkpoint-2"))
    again = looks(tmp_path / "watched")
    assert [row["step"] for row in again] == [0] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert [row["completion"] for row in again if row["step"] == 4] == [row["completion"] for row in rows[6:]]


@pytest.mark.parametrize(("records", "every"), [(0, 3), (2, 0)])
def test_looks_need_records_and_steps(records: int, every: int) -> None:
    with pytest.raises(ValueError, match="looks need"):
        LookRecorder(ring_records(2, seed=-1)[:records], every)
