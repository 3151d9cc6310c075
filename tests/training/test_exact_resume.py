"""Checkpoints of the trainer: sealed, kept by number and score, safe from a full disk, and refused when damaged."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from ral.config import RALConfig
from ral.runs.checkpoints import MANIFEST, CheckpointError, checkpoints, fault, seal
from ral.runs.names import TRAINING_ARGS
from tests.killing import TIMES, flip_bit
from tests.training.test_trainer import LORA, RECORDS, lines, same, trained, trainer

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "attention_anchor": "explore"}


def parameters(run: Any) -> dict[str, Any]:
    return {name: p.detach() for name, p in run.model.named_parameters()}


def test_a_resume_passes_over_a_damaged_checkpoint_and_ends_the_same(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path, max_steps=6, **SAVING)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert [fault(path) for path in checkpoints(tmp_path)] == [None] * 3
    flip_bit(tmp_path / "checkpoint-6" / "optimizer.pt")
    (tmp_path / "checkpoint-4" / MANIFEST).unlink()
    run = trainer(tmp_path, max_steps=6, **SAVING)
    with pytest.raises(CheckpointError, match=r"checkpoint-6 cannot be used\. damaged: optimizer\.pt"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    run.train(resume_from_checkpoint=True)
    assert same(parameters(run), whole)
    assert [fault(path) for path in checkpoints(tmp_path)] == [None] * 3, "the bad ones were written anew"


def test_a_run_resumed_at_its_end_takes_no_further_step(tmp_path: Path) -> None:
    """The end lies inside an epoch, where Trainer alone would train once more."""
    whole, metrics = trained(tmp_path, max_steps=2, num_iterations=1, **SAVING)
    before = (tmp_path / "checkpoint-2" / MANIFEST).stat().st_mtime_ns
    run = trainer(tmp_path, max_steps=2, num_iterations=1, **SAVING)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 2
    assert same(parameters(run), whole)
    assert lines(tmp_path / "metrics.jsonl") == metrics
    assert (tmp_path / "checkpoint-2" / MANIFEST).stat().st_mtime_ns == before


def test_between_the_updates_of_one_rollout_batch_nothing_is_gone_on_from(tmp_path: Path) -> None:
    trained(tmp_path, max_steps=3, **SAVING)
    with pytest.raises(CheckpointError, match=r"checkpoint-3 lies between the inner updates .*a multiple of 2"):
        trainer(tmp_path, max_steps=8, **SAVING).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_weights_alone_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, save_only_model=True, **SAVING)
    with pytest.raises(CheckpointError, match="save_only_model"):
        trainer(tmp_path, max_steps=4, **SAVING).train(resume_from_checkpoint=True)


class FullDisk(TrainerCallback):
    """From `step` on no file may grow beyond 256 KiB, which lets metrics through and no weights."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))


@pytest.fixture
def _disk() -> Iterator[None]:
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("_disk")
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4, save_total_limit=1, **SAVING)
    run.add_callback(FullDisk(2))
    with pytest.raises(CheckpointError, match=r"checkpoint-4 could not be saved \(.*checkpoint-2 is untouched.*MiB"):
        run.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert fault(tmp_path / "checkpoint-2") is None
    assert run.args.save_total_limit == 1


def test_checkpoints_are_kept_by_number_and_by_score(tmp_path: Path) -> None:
    """The best of two lies before the limit reaches; the rewards fall with every call."""
    falling = iter(range(1000, 0, -1))

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(next(falling)) for _ in completions]

    run = trainer(
        tmp_path,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=RECORDS[:1],
        reward_funcs=reward,
        load_best_model_at_end=True,
        metric_for_best_model="reward",
        save_total_limit=2,
        **SAVING,
    )
    run.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-8"]
    assert [fault(path) for path in checkpoints(tmp_path)] == [None, None]
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-2"
    best = trainer(tmp_path / "best", max_steps=2, reward_funcs=reward)
    best._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert same(parameters(run), parameters(best))


def test_the_log_of_a_resumed_run_is_that_of_the_whole_one(tmp_path: Path) -> None:
    """Every third step is logged, every second saved: a checkpoint closes the interval."""
    _, whole = trained(tmp_path, max_steps=6, logging_steps=3, num_iterations=1, **SAVING)
    assert [row["step"] for row in whole] == [2, 3, 4, 6]
    run = trainer(tmp_path, max_steps=6, logging_steps=3, num_iterations=1, **SAVING)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = [{k: v for k, v in row.items() if k not in TIMES} for row in lines(tmp_path / "metrics.jsonl")]
    assert found == [{k: v for k, v in row.items() if k not in TIMES} for row in whole]
    assert json.loads((tmp_path / "checkpoint-2" / MANIFEST).read_text())["processes"] == 1


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_what_is_saved_holds_settings_as_json_and_no_pickle_of_objects(tmp_path: Path, adapter: Any) -> None:
    run = trainer(tmp_path, peft_config=adapter, run_name="https://me:hunter2@example.org", **SAVING)
    run.train()
    run.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "checkpoint-2", tmp_path / "final"):
        settings = json.loads((folder / TRAINING_ARGS).read_text())
        assert settings["attention_anchor"] == "explore"
        assert "hunter2" not in json.dumps(settings)
        RALConfig(**settings | {"output_dir": str(tmp_path / "another")})
    tensors = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {name for name in files(tmp_path) if name.endswith((".bin", ".pt", ".pth", ".pkl"))} == tensors
    for name in tensors - {"rng_state.pth"}:
        torch.load(tmp_path / "checkpoint-2" / name, weights_only=True)


class Program:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_program_in_a_checkpoint_is_not_run(tmp_path: Path, name: str) -> None:
    trained(tmp_path, **SAVING)
    checkpoint = tmp_path / "checkpoint-2"
    torch.save({"state": Program(tmp_path / "run")}, checkpoint / name)
    seal(checkpoint, processes=1)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trainer(tmp_path, max_steps=4, **SAVING).train(resume_from_checkpoint=True)
    assert not (tmp_path / "run").exists()
    torch.load(checkpoint / name, weights_only=False)
    assert (tmp_path / "run").exists(), "it would have been run"
