"""What a run shows on the terminal."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from typer.testing import CliRunner

from ral.cli import app
from ral.training.terminal import TerminalLog, line
from tests.tiny import tiny_model

RECIPE = """\
model: start
data: rings[:8]
use_cpu: true
template: plain
max_completion_length: 3
num_generations: 2
per_device_train_batch_size: 2
max_steps: 2
"""


def test_a_line_shows_what_was_measured_and_nothing_else() -> None:
    logs = {
        "loss": 0.5,
        "reward": 0.4314,
        "reward/accuracy": 0.41,
        "completion_length": 186.6,
        "kl": 0.00213,
        "ratio": 1.0,
    }
    assert line(7, 120, logs, 3725.4) == (
        "step   7/120  reward 0.431  accuracy 0.410  length 187  KL 0.0021  left 1:02:05"
    )
    assert (
        line(7, 9, {"loss": 0.5, "reward": 0.0, "visual_share": 0.514}, 0)
        == "step 7/9  reward 0.000  looks 51%  left 0:00:00"
    )
    assert line(1, 9, {"loss": 1.25, "mean_token_accuracy": 0.5}, 8) == (
        "step 1/9  loss 1.2500  token accuracy 0.500  left 0:00:08"
    )
    held_out = {"eval_reward": 0.5, "eval_reward/accuracy": 0.25, "eval_completion_length": 3.0}
    assert line(4, 9, held_out, None) == "step 4/9  held out  reward 0.500  accuracy 0.250  length 3"


@pytest.mark.parametrize("main", [True, False])
def test_the_main_process_alone_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str], main: bool) -> None:
    log, args = TerminalLog("start on 8 records"), TrainingArguments(output_dir=str(tmp_path))
    state = TrainerState(is_world_process_zero=main, max_steps=10, global_step=4)  # resumed
    model = tiny_model()
    model.requires_grad_(False)
    log.on_train_begin(args, state, TrainerControl(), model=model)
    state.global_step = 5
    log.on_log(args, state, TrainerControl(), {"loss": 1.0, "reward": 0.5})
    log.on_log(args, state, TrainerControl(), {"train_runtime": 1.0})
    said = capsys.readouterr().out.splitlines()
    if main:
        assert re.fullmatch(r"start on 8 records; 0 of [\d.]+[kM] parameters trained; 6 steps", said[0])
        assert said[1:] == ["step  5/10  reward 0.500  left 0:00:00"]
    else:
        assert said == []


def test_a_run_speaks_in_lines(tmp_path: Path) -> None:
    recipe, run = tmp_path / "short.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    found = CliRunner().invoke(app, ["train", str(recipe), "--output_dir", str(run)])
    assert found.exit_code == 0, found.output
    first, loading, header, *steps, report = found.stdout.splitlines()
    assert loading == "loading start (746.3k parameters); on rings[:8]; 2 steps"
    assert first == f"{recipe} → {run}; its live report: {run / 'report.html'}"
    assert re.fullmatch(r"start on 8 records; 5\d\d\.\dk of 7\d\d\.\dk parameters trained; 2 steps", header), header
    number = r"\d\.\d{3}"
    for step, said in enumerate(steps, 1):
        assert re.fullmatch(
            rf"step {step}/2  reward {number}  accuracy {number}  length 3  KL -?\d\.\d{{4}}  looks \d+%  left \d:\d\d:\d\d",
            said,
        ), said
    assert (len(steps), report) == (2, str(run / "report.html"))


def test_notes_of_libraries_are_silent_in_commands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object, **__: object) -> str:
        for kind, module in (
            (FutureWarning, "transformers.modeling_utils"),
            (UserWarning, "peft.tuners"),
            (FutureWarning, "mine"),
        ):
            warnings.warn_explicit(f"of {module}", kind, "f.py", 1, module=module)
        return ""

    monkeypatch.setattr("ral.report.write_report", warn)
    for words, heard in (
        ([], ["peft.tuners", "mine"]),
        (["--debug"], ["transformers.modeling_utils", "peft.tuners", "mine"]),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert CliRunner().invoke(app, [*words, "report", str(tmp_path)]).exit_code == 0
            assert [str(one.message) for one in caught] == [f"of {module}" for module in heard]
            warn()
            assert len(caught) == len(heard) + 3, "the filters go with the command"
