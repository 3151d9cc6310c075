"""What stops a run before the weights are touched, and what it leaves."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from typer.testing import CliRunner

from ral.cli import app
from ral.data.record import Record
from ral.errors import DataError
from ral.files import read_jsonl
from ral.models.loading import load_policy
from ral.rewards.functions import RewardError
from ral.training.dumps import load_dump
from ral.training.nonfinite import NonFiniteError
from ral.training.trainer import RALTrainer
from tests.training.test_trainer import LORA, RECORDS, spread, trainer


class Break(TrainerCallback):
    """Before step 3 one weight becomes NaN."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 2:
            with torch.no_grad():
                dict(model.named_parameters())[NAME][0, 0] = torch.nan


NAME = "model.language_model.layers.1.mlp.up_proj.weight"


def replayed(dump: Path, *words: str) -> list[str]:
    found = CliRunner().invoke(app, ["replay", str(dump), *words])
    assert found.exit_code == 0, found.output
    return found.stdout.splitlines()


def test_a_loss_that_is_not_a_number_stops_before_the_update_and_is_replayed(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=8, num_iterations=4, reward_funcs=spread, attention_anchor="explore")
    run.add_callback(Break())
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is nan.*ral replay .*nonfinite-3"):
        run.train()
    dump = tmp_path / "nonfinite-3"
    assert not [path.name for path in dump.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")], "no pickle"
    saved = load_policy(dump / "model")
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7), dict(saved.named_parameters())[name].nan_to_num(7)), name
    told = replayed(dump)
    assert told[0].startswith(f"weights: {NAME} holds 1 NaN and 0 infinite")
    assert "stopped at step 3 of 8: the loss is nan" in told[1]
    assert any("the output of model.language_model.layers.1.mlp.up_proj is the first" in line for line in told)
    assert any(line.endswith("token term nan") for line in told)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_gradient_that_overflows_stops_before_the_update(tmp_path: Path, adapter: Any) -> None:
    run = trainer(
        tmp_path, reward_funcs=spread, attention_anchor="explore", attention_coef=1e38, peft_config=adapter,
        gradient_norm_steps=0, beta=0.0,
    )  # fmt: skip
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient's norm is inf"):
        run.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.model.named_parameters())
    told = replayed(tmp_path / "nonfinite-1")
    assert any("gradient norm inf" in line or "gradients are not finite" in line for line in told), told


class Scaled(RALTrainer):
    """With float16's gradient scaler, which accelerate makes on accelerators only."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)


def test_a_gradient_scaler_steps_over_what_it_caused_and_over_nothing_else(tmp_path: Path) -> None:
    """It goes from 4 to 2 and to 1 in two steps that change nothing; the third one overflows by itself."""
    run = trainer(tmp_path, kind=Scaled, reward_funcs=spread, max_steps=6, gradient_norm_steps=0, beta=0.0)
    dict(run.model.named_parameters())[NAME].register_hook(lambda gradient: gradient * torch.inf)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"step 3: the gradient's norm is (inf|nan)"):
        run.train()
    assert run.accelerator.scaler.get_scale() == 1
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.model.named_parameters())


@pytest.mark.parametrize("anchor", ["explore", "evidence"])
def test_a_dump_holds_the_batch_as_it_was(tmp_path: Path, anchor: str) -> None:
    run = trainer(tmp_path, reward_funcs=spread, attention_anchor=anchor)
    [groups] = run.make_rollouts([list(RECORDS[:2])])
    expected = run.compute_loss(run.model, groups)
    run.groups = [groups]
    run.state.max_steps = 2
    run.dump("a test").save(tmp_path / "dump", 3)
    [read] = load_dump(tmp_path / "dump", 3, run.model).micro_batches
    assert [group.scored.texts for group in read] == [group.scored.texts for group in groups]
    assert read[0].scored.record.solution == groups[0].scored.record.solution
    assert torch.equal(run.compute_loss(run.model, read), expected)
    with pytest.raises(ValueError, match=r"no dump of process 0; expected batch-0\.json"):
        load_dump(tmp_path / "dump", 0, run.model)


def test_a_record_that_cannot_be_decoded_stops_the_run_with_its_place(tmp_path: Path) -> None:
    """It was good when the data was read."""
    image = tmp_path / "ring.png"
    RECORDS[0].images[0].save(image)  # type: ignore[union-attr]
    records = [Record(str(i), "what colour?", "red", images=(image,), origin=f"data.jsonl: row {i}") for i in range(2)]
    run = trainer(tmp_path / "run", records)
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(DataError, match=r"data\.jsonl: row \d: image .*ring\.png: cannot be decoded"):
        run.train()


# --- signals ----------------------------------------------------------------------------------------------------------

RECIPE = """
model: start
data: rings
template: plain
num_generations: 2
per_device_train_batch_size: 2
max_completion_length: 4
max_steps: 6
num_iterations: 2
save_strategy: "no"
beta: 0
use_cpu: true
disable_tqdm: true
reward_funcs: [accuracy, {reward}:interrupting]
"""

REWARD = """
import os, signal, sys
calls = 0

def interrupting(prompts, completions, **columns):
    global calls
    calls += 1
    if calls == 2:  # the second rollout batch: steps 3 and 4
        os.kill(os.getpid(), signal.{name})
    return [0.0] * len(completions)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_the_run_which_goes_on_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, code: int
) -> None:
    (tmp_path / "reward.py").write_text(REWARD.format(name=name))
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(reward=tmp_path / "reward.py") + f"output_dir: {run}\n")
    before = signal.getsignal(getattr(signal, name))
    found = CliRunner().invoke(app, ["train", str(recipe)])
    assert found.exit_code == code, found.output
    assert "interrupted after step 4 of 6 and is saved in" in caplog.text
    assert "checkpoint-4; go on with --resume" in caplog.text
    assert not (run / "final").exists()
    assert signal.getsignal(getattr(signal, name)) == before
    (tmp_path / "reward.py").write_text(REWARD.format(name=name).replace("== 2", "== 99"))
    found = CliRunner().invoke(app, ["train", str(recipe), "--resume"])
    assert found.exit_code == 0, found.output
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == list(range(1, 7))


def test_a_reward_that_hangs_is_named_with_its_record(tmp_path: Path) -> None:
    def asleep(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        time.sleep(60)
        return []

    with pytest.raises(RewardError, match=r"record .* reward 'asleep' took more than 0\.1 s"):
        trainer(tmp_path, reward_funcs=asleep, reward_timeout=0.1).train()


PECULIAR = """
def peculiar(prompts, completions, boxes, completion_ids, **columns):
    assert all(box.x1 > box.x0 for boxes_of_one in boxes for box in boxes_of_one)
    return [float("nan") if i == 2 else None for i in range(len(completions))]

def mended(prompts, completions, **columns):
    return [0.5, None, 1.0, 0.0]
"""


def test_a_reward_that_is_not_a_number_is_kept_and_replayed(tmp_path: Path) -> None:
    """None says that a reward does not apply; NaN says nothing, and stops the run."""
    functions = tmp_path / "rewards.py"
    functions.write_text(PECULIAR)
    run = trainer(tmp_path / "run", reward_funcs=["format", f"{functions}:peculiar"])
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    with pytest.raises(
        RewardError, match=r"record .* 'peculiar' returned nan for completion 2.*ral replay .*failed-reward-1"
    ):
        run.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.model.named_parameters())
    told = replayed(tmp_path / "run/failed-reward-1")
    assert "stopped at step 1: record " in told[0]
    assert [line.split(":")[0] for line in told[1:]] == [f"completion {i}" for i in range(4)]
    again = replayed(tmp_path / "run/failed-reward-1", "--reward", f"{functions}:peculiar")
    assert again[:-1] == told
    assert "called again: reward 'peculiar' returned nan for completion 2" in again[-1]
    again = replayed(tmp_path / "run/failed-reward-1", "--reward", f"{functions}:mended")
    assert again[-1] == "called again: mended returned [0.5, None, 1.0, 0.0]"
