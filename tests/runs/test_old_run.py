"""A run folder that version 0.1.0 wrote (commit d7b1e3f) is gone on with, reported and loaded.

`run_of_0_1_0/` is what was left by `ral train` of its own `config.yaml`, but for the second checkpoint and the final weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ral.files import read_jsonl
from ral.models.loading import load_model
from ral.recipe import load_recipe
from ral.report import write_report
from ral.testbed import start_checkpoint
from ral.training.launch import train

OLD = Path(__file__).parent / "run_of_0_1_0"
#: What is measured anew on every machine.
OF_MACHINE = {"step_seconds", "tokens_per_second", "memory_peak_gib"}


def test_it_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD, run)
    expected = list(read_jsonl(run / "metrics.jsonl"))
    # It was written with the folder that it ran in; all else is as it stands there.
    train(load_recipe(run / "config.yaml", ["--output_dir", str(run)]), resume=True)
    resumed = list(read_jsonl(run / "metrics.jsonl"))
    assert [row["step"] for row in resumed] == list(range(1, 9))
    for old, new in zip(expected, resumed, strict=True):
        assert old.keys() <= new.keys()
        numbers = old.keys() - OF_MACHINE
        assert {key: new[key] for key in numbers} == pytest.approx(
            {key: old[key] for key in numbers}, rel=1e-4, abs=1e-6
        )
    page = write_report(run).read_text(encoding="utf-8")
    assert f"{resumed[-1]['reward']:.2f}" in page


def test_its_checkpoint_is_loaded(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(OLD / "checkpoint-4", checkpoint)
    description = checkpoint / "adapter_config.json"
    facts = json.loads(description.read_text(encoding="utf-8"))
    description.write_text(json.dumps(facts | {"base_model_name_or_path": str(start_checkpoint())}), encoding="utf-8")
    changed, start = load_model(checkpoint).state_dict(), load_model(start_checkpoint()).state_dict()
    moved = {name for name in start if not bool((changed[name] == start[name]).all())}
    assert moved == {f"model.language_model.layers.{n}.self_attn.q_proj.weight" for n in range(2)}
