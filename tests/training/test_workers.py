"""Training whose prompts are encoded by other processes is training without them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ral.data import loading
from ral.errors import WorkerError
from ral.runs.names import METRICS
from ral.training.trainer import RALTrainer
from tests.data.test_record_errors import ENDED
from tests.training.test_trainer import RECORDS, G, spread, trainer

STEP: dict[str, Any] = {
    "reward_funcs": spread, "per_device_train_batch_size": G, "gradient_accumulation_steps": 2, "num_iterations": 2,
    "max_completion_length": 6, "max_steps": 4, "learning_rate": 1e-3,
}  # fmt: skip


def trained(folder: Path, **settings: Any) -> RALTrainer:
    run = trainer(folder, **STEP | settings)
    run.train(resume_from_checkpoint=(settings.get("max_steps") == 4 and any(folder.glob("checkpoint-2"))) or None)
    return run


def weights(run: RALTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_weights_do_not_depend_on_workers_nor_on_a_resume_with_them(tmp_path: Path) -> None:
    alone = weights(trained(tmp_path / "alone"))
    helped = trained(tmp_path / "helped", dataloader_num_workers=2)
    losses = [(tmp_path / name / METRICS).read_text(encoding="utf-8") for name in ("alone", "helped")]
    assert losses[0].count("loss") == losses[1].count("loss") > 0
    for steps in (2, 4):
        resumed = trained(
            tmp_path / "resumed", dataloader_num_workers=1, max_steps=steps, save_strategy="steps", save_steps=2
        )
    for other in (helped, resumed):
        assert all(torch.equal(value, alone[name]) for name, value in weights(other).items())


def test_workers_encode_the_next_step_and_no_further(tmp_path: Path) -> None:
    """Of 2 micro-batches × 2 inner updates, 4 of the loader's batches hold the prompts of one step."""
    run = trainer(tmp_path, **STEP, dataloader_num_workers=2)
    loader = run.get_train_dataloader()
    assert loader.num_workers * loader.prefetch_factor == 4
    assert (
        trainer(
            tmp_path, **STEP, dataloader_num_workers=2, dataloader_prefetch_factor=5
        ).args.dataloader_prefetch_factor
        == 5
    )
    batches = list(loader)
    assert [[item.inputs is None for item in batch] for batch in batches[:4]] == [[False], [False], [True], [True]]
    assert [item.number for batch in batches[:2] for item in batch] == [i.number for b in batches[2:4] for i in b]


def deadly_at(record: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills each worker that reads this record."""
    main, encode = os.getpid(), loading.encode_prompt

    def deadly(processor: Any, asked: Any, settings: Any) -> Any:
        if os.getpid() != main and asked.id == record:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(processor, asked, settings)

    monkeypatch.setattr(loading, "encode_prompt", deadly)


KILLED = rf"{ENDED} while it read .*lower dataloader_num_workers"


def test_a_worker_that_is_killed_is_an_error_that_names_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly_at(RECORDS[1].id, monkeypatch)
    run = trainer(tmp_path, **STEP, dataloader_num_workers=1)
    with pytest.raises(WorkerError, match=KILLED) as caught:
        run.train()
    assert RECORDS[1].place in str(caught.value)


@pytest.mark.parametrize("what", ["evaluate", "predict"])
def test_a_worker_that_is_killed_in_an_evaluation_names_its_record(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly_at(RECORDS[2].id, monkeypatch)
    run = trainer(tmp_path, **STEP, dataloader_num_workers=1)
    with pytest.raises(WorkerError, match=KILLED) as caught:
        getattr(run, what)(RECORDS)
    assert RECORDS[2].place in str(caught.value)
