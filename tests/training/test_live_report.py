"""The page that follows a run, on a run that writes it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ral.training.live_report import INTERVAL, LiveReport
from tests.report.saved import write_training


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)


def log(live: LiveReport, args: TrainingArguments, main: bool = True) -> None:
    live.on_log(args, TrainerState(is_world_process_zero=main), TrainerControl())


def test_the_page_is_written_now_and_then(
    args: TrainingArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_training(tmp_path, "grpo", steps=4)
    now = [1000.0]
    monkeypatch.setattr("ral.training.live_report.time.monotonic", lambda: now[0])
    live, page = LiveReport(), tmp_path / "report.html"
    log(live, args, main=False)
    assert not page.exists()
    log(live, args)
    assert 'id="live"' in page.read_text(encoding="utf-8")
    page.unlink()
    now[0] += INTERVAL - 1
    log(live, args)
    assert not page.exists()
    now[0] += 2
    log(live, args)
    assert page.exists()


def test_a_page_that_cannot_be_written_does_not_end_the_run(
    args: TrainingArguments, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        log(LiveReport(), args)  # the folder is empty
    assert "could not be written" in caplog.text
