"""Real processes, killed with SIGKILL at moments that matter, end bit for bit like the run that was left alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ral.errors import UsageError
from ral.models.loading import export, load_model
from ral.runs.checkpoints import MANIFEST
from tests.killing import Attempt, Case, broken_files, result

#: Each process has a part of the weights, and writes it into checkpoints; the first one alone reads the start model.
CASE = Case("two", processes=2, changes={
    "attention_anchor": "explore", "attention_share": 0.5, "gradient_accumulation_steps": 2, "fsdp": True,
    "fsdp_config": {"version": 2, "reshard_after_forward": True, "state_dict_type": "SHARDED_STATE_DICT",
                    "cpu_ram_efficient_loading": True},
})  # fmt: skip


def saving(step: int) -> Callable[[Path], bool]:
    """Inside the save of a checkpoint."""
    return lambda run: (run / f"checkpoint-{step}").exists() and not (run / f"checkpoint-{step}" / MANIFEST).exists()


def in_step(step: int) -> Callable[[Path], bool]:
    """Behind the rollouts of a step, before its end."""
    return lambda run: (run / "samples.jsonl").exists() and f'{{"step": {step},' in (run / "samples.jsonl").read_text()


def test_killed_processes_lose_nothing(tmp_path: Path) -> None:
    recipe = CASE.write(tmp_path)
    assert Attempt(recipe, tmp_path / "whole", CASE.processes).wait() == [0, 0], (tmp_path / "whole.log").read_text()
    whole, run = result(tmp_path / "whole"), tmp_path / "run"

    def until(moment: Callable[[Path], bool]) -> Attempt:
        attempt = Attempt(recipe, run, CASE.processes)
        while attempt.running and not moment(run):
            time.sleep(0.002)
        return attempt

    assert until(saving(2)).kill(0)[0] == -9, "the moment was missed"
    assert until(in_step(3)).interrupt(1) == [143, 143], "all processes follow the one that got the signal"
    assert until(in_step(5)).kill(1)[1] == -9
    assert until(saving(6)).kill(0)[0] == -9
    assert broken_files(run) == []
    assert Attempt(recipe, run, CASE.processes).wait() == [0, 0], run.with_suffix(".log").read_text()
    assert [row["step"] for row in whole["metrics"]] == list(range(1, 9))
    assert result(run) == whole

    with pytest.raises(
        UsageError, match=r"checkpoint-8: holds a model in shards, .* ral export .*checkpoint-8 --output"
    ):
        load_model(run / "checkpoint-8")
    export(run / "checkpoint-8", tmp_path / "one")
    parts, final = load_model(tmp_path / "one").state_dict(), load_model(run).state_dict()
    assert parts.keys() == final.keys()
    assert all(torch.equal(value, final[name]) for name, value in parts.items())


def test_all_processes_stop_where_a_gradient_overflows_and_leave_their_batches(tmp_path: Path) -> None:
    overflow = {"attention_anchor": "explore", "attention_coef": 1e38, "beta": 0.0, "gradient_norm_steps": 0}
    recipe, run = Case("overflow", 2, overflow).write(tmp_path), tmp_path / "run"
    assert Attempt(recipe, run, 2).wait() == [1, 1]
    assert "NonFiniteError: step 1: the gradient's norm is inf" in run.with_suffix(".log").read_text()
    assert {path.name for path in (run / "nonfinite-1").iterdir()} == {
        *(f"batch-{process}.{kind}" for process in range(2) for kind in ("json", "safetensors")),
        "model",
    }
