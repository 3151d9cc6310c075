"""The testbed's recipes of every variant run as they stand, from the shipped start checkpoint; two updates of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from ral.files import read_jsonl
from ral.launch import train
from ral.loading import load_model
from ral.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes" / "testbed"
#: What each adds to the log.
VARIANTS = {
    "grpo": "reward/accuracy",
    "ral": "grad/attention_to_token",
    "ral-zero": "attention/loss",
    "explore": "explore/logp_gap",
    "group": "grad/attention_norm",
    "lora": "explore/logp_gap",
    "distill-attention": "distill/attention_jsd",
    "distill-gkd": "distill/gkd",
    "distill-both": "distill/attention_jsd",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recipe_trains_and_its_model_loads(tmp_path: Path, name: str) -> None:
    file = RECIPES / f"{name}.yaml"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 20
    small = {"output_dir": tmp_path, "max_steps": 2, "per_device_train_batch_size": 16, "disable_tqdm": "true"}
    folder = train(load_recipe(file, [f"--{key}={value}" for key, value in small.items()]))
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    assert VARIANTS[name] in rows[-1]
    load_model(folder)
