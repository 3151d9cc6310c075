from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ral import files
from ral.files import read_jsonl
from ral.runs import folder
from ral.runs.checkpoints import seal
from ral.runs.folder import MetricsWriter, append_jsonl, environment, prepare_run, source_commit, truncate_after


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if complete:
        seal(path, processes=1)
    return path


def test_a_fresh_run_holds_its_config_without_credentials(tmp_path: Path) -> None:
    prepare_run(tmp_path / "run", {"model": "m", "learning_rate": 1e-5, "hub_token": "hf_x"}, data="f00d")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()) == {"model": "m", "learning_rate": 1e-5}
    written = json.loads((tmp_path / "run/environment.json").read_text())
    assert (written["data"], written["processes"]) == ("f00d", 1)
    assert written["python"] == platform.python_version()
    assert written["packages"]["torch"] == torch.__version__.split("+")[0]
    assert written["machine"]["cpu_count"] == os.cpu_count()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".metrics.jsonl{files._PART}").write_text("{")
    prepare_run(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]


def test_a_git_that_hangs_does_not_hang_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], timeout: float | None = None, **how: Any) -> Any:
        assert timeout is not None
        assert timeout <= 30
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(folder.subprocess, "run", hangs)
    assert source_commit() is None


def test_environment_tells_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_FOR_TEST", "hunter2-environment")
    text = json.dumps(environment())
    assert "hunter2" not in text
    assert platform.node() not in text
    assert str(Path.home()) not in text


def test_a_folder_with_a_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    prepare_run(tmp_path, {})
    with pytest.raises(ValueError, match=r"already holds a run \(config.yaml.*--resume.*--overwrite"):
        prepare_run(tmp_path, {})


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    prepare_run(tmp_path, {"seed": 1})
    checkpoint(tmp_path, 10)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    prepare_run(tmp_path, {"seed": 2}, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoint-notes",
        "config.yaml",
        "environment.json",
        "thesis.tex",
    ]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 2}


def test_overwrite_unlinks_a_linked_folder_but_keeps_its_target(tmp_path: Path) -> None:
    target, run = checkpoint(tmp_path, 7), tmp_path / "run"
    prepare_run(run, {})
    (run / "final").symlink_to(target)
    prepare_run(run, {}, overwrite=True)
    assert not (run / "final").exists()
    assert (target / "manifest.json").exists()


def test_a_run_goes_on_with_its_own_settings_and_data_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_run(tmp_path, {"max_steps": 4, "betas": (0.9, 0.99)}, data="f00d")
    checkpoint(tmp_path, 4)
    prepare_run(tmp_path, {"max_steps": 8, "betas": (0.9, 0.99)}, data="f00d", resume=True)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["max_steps"] == 8
    assert not caplog.records
    with pytest.raises(ValueError, match=r"betas: \[0.9, 0.99\] → \[0.9, 0.999\]"):
        prepare_run(tmp_path, {"max_steps": 8, "betas": (0.9, 0.999)}, data="f00d", resume=True)
    with pytest.raises(ValueError, match="training data"):
        prepare_run(tmp_path, {"max_steps": 8, "betas": (0.9, 0.99)}, data="beef", resume=True)
    facts = json.loads((tmp_path / "environment.json").read_text())
    facts["packages"]["torch"] = "1.0"
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    prepare_run(tmp_path, {"max_steps": 8, "betas": (0.9, 0.99)}, data="f00d", resume=True)
    assert "torch 1.0 →" in caplog.text
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"config.yaml and environment.json .*cannot be read.*copy them back"):
        prepare_run(tmp_path, {}, resume=True)


def test_a_row_that_cannot_be_written_names_its_file() -> None:
    with pytest.raises(OSError, match="/dev/full"):
        append_jsonl(Path("/dev/full"), [{"step": 1}])


def test_resume_never_starts_again_silently(tmp_path: Path) -> None:
    prepare_run(tmp_path, {})
    checkpoint(tmp_path, 5, complete=False)
    with pytest.raises(ValueError, match="no finished checkpoint to resume from"):
        prepare_run(tmp_path, {}, resume=True)


def test_contradicting_requests_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        prepare_run(tmp_path, {}, resume=True, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        prepare_run(tmp_path / "file", {})


def test_truncate_after_keeps_earlier_steps_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2}\n'


class Line(torch.nn.Module):
    """y = w·x with its squared error: the smallest model that Trainer trains."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.w * x - labels) ** 2).mean()}


class Points(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(float(index)), "labels": torch.tensor(2.0 * index)}


def test_metrics_have_one_line_per_step_across_a_resume(tmp_path: Path) -> None:
    def train(steps: int, resume: Path | None) -> None:
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_steps=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            learning_rate=1e-3,
        )
        trainer = Trainer(Line(), args, train_dataset=Points(), callbacks=[MetricsWriter()])
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    train(3, None)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    train(5, tmp_path / "checkpoint-2")
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all({"loss", "learning_rate", "grad_norm", "epoch"} <= row.keys() for row in rows)


def test_the_commit_is_that_of_a_tracked_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "folder.py"
    source.write_text("1")
    monkeypatch.setattr(folder, "__file__", str(source))

    def git(*command: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.check_output(["git", "-C", str(tmp_path), *who, *command], text=True).strip()

    assert source_commit() is None, "no repository"
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "of somebody else")
    assert source_commit() is None, "not tracked"
    git("add", "folder.py")
    git("commit", "-q", "-m", "mine")
    assert source_commit() == git("rev-parse", "HEAD")
    assert len(git("rev-parse", "HEAD")) == 40
    source.write_text("2")
    assert source_commit() == git("rev-parse", "HEAD") + "-dirty"


def test_the_machine_is_told_with_its_gpus() -> None:
    machine = environment()["machine"]
    assert machine["gpus"] == [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    assert machine["memory_gib"] > 0.5
