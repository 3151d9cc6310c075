"""Real processes, killed with SIGKILL at moments that matter, end bit for bit like the run that was left alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ral.checkpoints import MANIFEST
from tests.killing import LORA, Attempt, Case, broken_files, result

CASE = Case("two", processes=2, changes={"attention_anchor": "explore", "gradient_accumulation_steps": 2, "peft": LORA})


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
    for victim, moment in ((0, saving(2)), (1, in_step(5)), (0, saving(6))):
        attempt = Attempt(recipe, run, CASE.processes)
        while attempt.running and not moment(run):
            time.sleep(0.002)
        codes = attempt.kill(victim)
        assert codes[victim] == -9, "the moment was missed"
        assert broken_files(run) == []
    assert Attempt(recipe, run, CASE.processes).wait() == [0, 0], run.with_suffix(".log").read_text()
    assert [row["step"] for row in whole["metrics"]] == list(range(1, 9))
    assert result(run) == whole
