from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from typer.testing import CliRunner

from ral.cli import app
from ral.data.record import Record
from ral.files import read_jsonl
from ral.recipe import load_recipe
from ral.testbed.sets import SETS, load_data

RECIPE = """\
model: start
data: rings
template: plain
num_generations: 2
per_device_train_batch_size: 4
max_completion_length: 4
max_steps: 4
save_steps: 2
beta: 0
use_cpu: true
disable_tqdm: true
"""


def test_a_recipe_trains_is_protected_and_resumes(tmp_path: Path) -> None:
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)

    def train(*words: str) -> str:
        found = CliRunner().invoke(app, ["train", str(recipe), "--output_dir", str(run), *words])
        assert found.exit_code == (2 if "error: " in found.stderr else 0), found.output
        return found.stderr if found.exit_code else found.stdout

    assert str(run / "report.html") in train("--max_steps", "2")
    assert {"config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "checkpoint-2", "final"} <= {
        path.name for path in run.iterdir()
    }
    assert json.loads((run / "final/config.json").read_text())["model_type"] == "qwen2_5_vl"
    assert (run / "final/tokenizer.json").exists()
    assert load_recipe(run / "config.yaml").args.max_completion_length == 4

    assert "already holds a run" in train()
    assert "learning_rate: 1e-05 → 0.5" in train("--resume", "--learning_rate", "0.5")
    assert "training data (easy-vqa) is not what the run was started with (rings)" in train(
        "--resume", "--data", "easy-vqa"
    )
    train("--resume", "--eval_data", "rings", "--look_steps", "2", "--look_items", "3")
    looks = list(read_jsonl(run / "looks/items.jsonl"))
    assert [(row["step"], row["question"].count("<image>")) for row in looks] == [(2, 0)] * 3 + [(4, 0)] * 3
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (run / "checkpoint-4").exists()
    assert not (run / ".final").exists()


def test_a_refused_run_leaves_the_earlier_one_as_it_is(tmp_path: Path) -> None:
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(RECIPE + f"output_dir: {run}\n")
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    found = CliRunner().invoke(app, ["train", str(recipe), "--overwrite", "--data", str(tmp_path / "none.jsonl")])
    assert found.exit_code == 2
    assert "none.jsonl" in found.stderr
    assert (run / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_looks_without_held_out_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE + f"output_dir: {tmp_path}/run\nlook_steps: 5\n")
    found = CliRunner().invoke(app, ["train", str(tmp_path / "tiny.yaml")])
    assert (found.exit_code, "set eval_data" in found.stderr) == (2, True)


def test_splits_of_the_rings_share_no_image() -> None:
    train, test = load_data("rings", "train"), load_data("rings", "test")
    assert (len(train), len(test)) == (4096, 512)
    assert not pixels(train) & pixels(test)


def pixels(records: list[Record]) -> set[bytes]:
    return {image.tobytes() for record in records for image in record.images if isinstance(image, Image.Image)}


@pytest.mark.parametrize(("split", "count"), [("train", 38_575), ("test", 9_673)])
def test_easy_vqa_is_read_by_name(split: Literal["train", "test"], count: int) -> None:
    assert len(load_data("easy-vqa", split)) == count


def test_several_sources_are_read_as_one_and_splits_share_no_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minigrid")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, trained, held_out in (("episodes", 3, 2), ("told", 3, 2), ("rings", 4, 1)):
        monkeypatch.setitem(SETS, name, replace(SETS[name], sizes={"train": trained, "test": held_out}))
    train, test = (load_data(["episodes", "told", "rings"], split) for split in ("train", "test"))
    assert [(len(r.images), len(r.videos)) for r in train] == [(0, 1)] * 3 + [(0, 0)] * 3 + [(1, 0)] * 4
    assert len(test) == 5
    assert not {r.id for r in train} & {r.id for r in test}


@pytest.mark.parametrize("name", ["video-grpo", "video-ral", "mixed"])
def test_the_recipes_of_video_can_be_read(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "testbed" / f"{name}.yaml")
    assert recipe.data == (["rings", "episodes", "told"] if name == "mixed" else "episodes")
    assert (recipe.args.fps, recipe.args.max_pixels) == (1.0, 1024)
