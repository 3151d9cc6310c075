"""`ral quickstart` for real, with two updates and a handful of images."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ral.quickstart import LABELS, START, START_LABEL, arm_recipe, run_quickstart
from ral.recipe import load_recipe
from tests.test_wheel import build_wheel

RECIPES = Path(__file__).parents[1] / "recipes" / "testbed"


def from_wheel(folder: Path, *words: str) -> str:
    """What `ral quickstart` prints, run from the files of the wheel alone, with the installed dependencies."""
    with zipfile.ZipFile(build_wheel(folder / "project")) as archive:
        archive.extractall(folder / "installed")
    environment = os.environ | {"PYTHONPATH": str(folder / "installed")}
    code = "import ral, sys; print(ral.__file__); from ral.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "quickstart", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    where, *said = found.stdout.splitlines()
    assert where == str(folder / "installed" / "ral" / "__init__.py")
    return said[-1]


def test_every_arm_is_trained_from_the_start_evaluated_and_reported(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wheel = tmp_path_factory.mktemp("wheel")
    page = Path(from_wheel(wheel, "--output", str(tmp_path), "--steps", "2", "--held-out", "6"))
    assert page == tmp_path / "report.html"
    description = json.loads((tmp_path / "quickstart.json").read_text(encoding="utf-8"))
    assert [arm["path"] for arm in description["arms"]] == [START, *LABELS]
    assert all(seconds > 0 for seconds in description["seconds"].values())
    html = page.read_text(encoding="utf-8")
    for name, label in {START: START_LABEL, **LABELS}.items():
        summary = json.loads((tmp_path / name / "eval/rings/summary.json").read_text(encoding="utf-8"))
        assert (summary["model"], summary["n"]) == (label, 6)
        assert (summary["settings"]["template"], summary["settings"]["max_completion_length"]) == ("plain", 24)
        assert label in html
    first = []
    for name in LABELS:
        run = tmp_path / name
        again = load_recipe(run / "config.yaml")
        assert (again.data, again.args.max_steps) == ("rings[:16]", 2), "a run folder holds a recipe, as any other"
        assert json.loads((run / "environment.json").read_text(encoding="utf-8"))["data"]
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in metrics] == [1, 2]
        samples = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        first.append(json.loads(samples[0])["question"])
        looks = [json.loads(line) for line in (run / "looks/items.jsonl").read_text().splitlines()]
        assert [row["step"] for row in looks] == [0] * 6 + [2] * 6
        assert (run / "final/model.safetensors").exists()
        own = (run / "report.html").read_text(encoding="utf-8")
        assert 'id="live"' not in own
        assert "of the answers are right" in own
    assert "Learning to look" in html
    assert 'id="live"' not in html, "it is over"
    assert len(set(first)) == 1, "all arms see the same prompts in the same order"
    with pytest.raises(ValueError, match="--overwrite"):
        run_quickstart(tmp_path, steps=2, held_out=6)


def settings(name: str, **changes: str) -> dict:
    return arm_recipe(name, Path("q"), seed=3).settings() | changes


def test_arms_differ_in_the_attention_term_and_in_nothing_else() -> None:
    own = {"output_dir", "logging_dir", "run_name"}
    grpo = settings("grpo")
    for name in LABELS:
        other = settings(name)
        differing = {key for key in grpo.keys() | other.keys() if grpo.get(key) != other.get(key)}
        assert differing - own <= {"attention_coef", "attention_anchor"}, name


@pytest.mark.parametrize(("name", "recipe"), [("grpo", "grpo"), ("ral-old", "ral"), ("ral-explore", "explore")])
def test_the_arms_are_the_testbeds_recipes_over_more_steps(name: str, recipe: str) -> None:
    other = load_recipe(RECIPES / f"{recipe}.yaml", ["--seed", "3", "--output_dir", f"q/{name}"]).settings()
    arm = settings(name)
    differing = {key for key in arm.keys() | other.keys() if arm.get(key) != other.get(key)}
    assert differing <= {"data", "eval_data", "look_steps", "max_steps", "disable_tqdm", "logging_dir", "run_name"}


@pytest.mark.parametrize(("steps", "prompts", "of_all"), [(None, 1280, 160), (1, 16, 1), (8, 64, 8), (700, 5600, 700)])
def test_no_prompt_is_met_twice(steps: int | None, prompts: int, of_all: int) -> None:
    recipe = arm_recipe("grpo", Path("q"), seed=0, steps=steps)
    assert (recipe.data, recipe.args.max_steps) == (f"rings[:{prompts}]", of_all)


def test_the_command_of_a_quickstart_is_one_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    from ral.quickstart import _command

    words = shlex.split(_command(Path("my runs/it's 1; rm -r x"), 4, 60, 512))
    assert words == ["ral", "quickstart", "--output", "my runs/it's 1; rm -r x", "--seed", "4", "--held-out", "512", "--steps", "60"]  # fmt: skip
