"""The reference follows the policy as TRL's callback has it, and a resumed run has the one it had."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.callbacks import SyncRefModelCallback

from ral.config import ConfigError
from ral.errors import RunError
from tests.training.test_trainer import LORA, MODEL, lines, same, spread, trainer

SYNC: dict[str, Any] = {
    "sync_ref_model": True,
    "ref_model_sync_steps": 2,
    "ref_model_mixup_alpha": 0.25,
    "reward_funcs": spread,
}


def test_it_moves_as_trls_does(tmp_path: Path) -> None:
    run = trainer(tmp_path, **SYNC, max_steps=2)
    theirs, start = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    run.train()
    SyncRefModelCallback.sync_target_model(run.model, theirs, 0.25)
    found = dict(run.reference.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[name], parameter, atol=1e-7, rtol=0)
    assert not same(found, dict(start.named_parameters()))
    assert not any(parameter.requires_grad for parameter in found.values())


def test_a_resumed_run_goes_on_with_the_moved_reference(tmp_path: Path) -> None:
    changes: dict[str, Any] = SYNC | {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, **changes)
    whole.train()
    expected = [row["kl"] for row in lines(tmp_path / "metrics.jsonl")]
    run = trainer(tmp_path, **changes)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [row["kl"] for row in lines(tmp_path / "metrics.jsonl")] == expected
    assert same(dict(run.reference.model.named_parameters()), dict(whole.reference.model.named_parameters()))
    assert same(dict(run.model.named_parameters()), dict(whole.model.named_parameters()))


def test_a_checkpoint_of_a_run_without_it_is_refused(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "reward_funcs": spread}
    trainer(tmp_path, **changes).train()
    run = trainer(tmp_path, **SYNC | changes | {"max_steps": 4})
    with pytest.raises(RunError, match=r"holds no reference-0\.safetensors"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_config": LORA}, "the model without the adapter, which does not move"),
        (
            {"beta": 0.0},
            r"sync_ref_model=True does nothing with beta=0\.0 and .*; set beta above 0, or attention_anchor to ref",
        ),
        ({"ref_model_mixup_alpha": 0.0}, r"ref_model_mixup_alpha must be in \(0, 1\]"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps must be positive"),
    ],
)
def test_a_reference_that_cannot_move_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, **SYNC | changes)
