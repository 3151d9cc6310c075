"""The table of completions: what it shows, when, and what trackers get."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ral.config import ConfigError, RALConfig
from ral.training.completions_table import CompletionsTable, latest, tables
from tests.training.test_held_out import trainer


def samples(folder: Path, steps: int) -> None:
    rows = [
        {"step": step, "id": "a", "question": "which [red] one?", "solution": "this", "completion": f"text {step}.{g}",
         "reward": g / 2, "rewards": {"accuracy": float(g), "mine": None}, "advantage": g - 0.5}
        for step in range(1, steps + 1) for g in range(2)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_latest_completions_are_shown_every_n_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, args = CompletionsTable(2, None), TrainingArguments(str(tmp_path), report_to="none")
    state = TrainerState(is_world_process_zero=True)
    for step in range(1, 5):
        samples(tmp_path, step)
        state.global_step = step
        shown.on_log(args, state, TrainerControl(), {"loss": 1.0})
        shown.on_log(args, state, TrainerControl(), {"eval_reward": 1.0})
    text = capsys.readouterr().out
    assert ["text 1.0" in text, "text 2.0" in text, "text 3.0" in text, "text 3.1" in text, "text 4.0" in text] == [
        True, False, True, True, False,
    ]  # fmt: skip
    state.global_step = 5
    shown.on_log(args, state, TrainerControl(), {"loss": 1.0})  # another update on the rollouts of step 4
    assert "text 4.0" in capsys.readouterr().out
    state.global_step = 7
    shown.on_log(args, state, TrainerControl(), {"loss": 1.0})
    assert not capsys.readouterr().out
    assert "[red]" in text, "what a model or the data says is no markup"
    assert "1.00" in text
    assert len(latest(tmp_path / "samples.jsonl", 1)) == 1


def test_trackers_get_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []
    for name in ("wandb", "trackio"):
        fake = SimpleNamespace(Table=lambda dataframe: dataframe, log=logged.append)
        monkeypatch.setitem(sys.modules, name, fake)
    samples(tmp_path, 1)
    args = SimpleNamespace(output_dir=str(tmp_path), report_to=["wandb", "trackio", "tensorboard"])
    state = TrainerState(is_world_process_zero=True, global_step=1)
    CompletionsTable(1, None).on_log(args, state, TrainerControl(), {"loss": 1.0})  # type: ignore[arg-type]
    assert len(logged) == 2
    frame = logged[0]["completions"]
    assert list(frame["completion"]) == ["text 1.0", "text 1.1"]
    assert list(frame["accuracy"]) == [0.0, 1.0]
    assert {"step", "question", "solution", "advantage", "reward"} <= set(frame)


def test_a_run_shows_them_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, log_completions=True, num_completions_to_print=1, max_steps=1)
    run.train()
    assert "completions of step 1" in capsys.readouterr().out
    assert tables(RALConfig(str(tmp_path), use_cpu=True)) == []
    with pytest.raises(ConfigError, match="samples_per_step must be at least 1, got 0"):
        RALConfig(str(tmp_path), use_cpu=True, log_completions=5, samples_per_step=0)
