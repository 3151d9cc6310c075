"""docs/extending.md as its reader would use it: the page's Python is `mine.py`, its recipe is trained and evaluated with it."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from ral.config import ConfigError, RALConfig
from ral.evaluate.tasks import BENCHMARKS
from ral.objective.anchors import ANCHORS, Anchor, to_target
from ral.training.targets import TARGETS
from ral.training.trainer import RALTrainer

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
#: The one step that the page tries its anchor with is not a part of the file.
MINE = "".join(block for block in BLOCKS if "RALTrainer" not in block)
[RECIPE] = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mine(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """`python mine.py WORDS`, in this process; what the file registers is taken back."""
    monkeypatch.setattr(sys, "argv", ["mine.py", *words])
    with patch.dict(ANCHORS), patch.dict(TARGETS), patch.dict(BENCHMARKS), pytest.raises(SystemExit) as end:
        runpy.run_path("mine.py", run_name="__main__")
    assert not end.value.code


def test_each_piece_is_about_ten_lines() -> None:
    for block in BLOCKS[:3]:
        body = [node for node in ast.parse(block).body if not isinstance(node, ast.Import | ast.ImportFrom)]
        assert sum(len(ast.unparse(node).splitlines()) for node in body) <= 10


def test_the_command_line_trains_and_evaluates_with_all_three(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--max_steps", "2", "--per_device_train_batch_size", "32", "--gradient_norm_steps", "1"]
    mine(monkeypatch, "train", "recipe.yaml", "--attention_anchor", "sharpen", "--num_iterations", "1", *small)
    rows = [
        json.loads(line) for line in (folder / "runs/recipe/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 < row["reward/brief"] < 1
        assert row["grad/attention_to_token"] > 1e-3, "with one update per rollout batch: first order"
    own_target = ["--attention_anchor", "first_layer", "--output_dir", "runs/first", *small]
    mine(monkeypatch, "train", "recipe.yaml", *own_target)
    rows = [json.loads(line) for line in (folder / "runs/first/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["attention/jsd_positive"] > 1e-3 for row in rows), "the first layer looks elsewhere than the last"
    assert all(row["grad/attention_to_token"] > 1e-3 for row in rows)
    mine(monkeypatch, "eval", "runs/recipe", "--tasks", "crowded", "--n", "16")
    summary = json.loads((folder / "runs/recipe/eval/crowded/summary.json").read_text(encoding="utf-8"))
    assert {"rings/2", "rings/8", "rings/mean"} <= summary["figures"].keys()
    assert summary["grounding"] is not None


def test_an_anchor_with_a_target_of_its_own_touches_no_file_of_the_package() -> None:
    """And the block that adds one is as short as the others."""
    [block] = [block for block in BLOCKS if "TARGETS[" in block]
    body = [node for node in ast.parse(block).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert sum(len(ast.unparse(node).splitlines()) for node in body) <= 10


def test_a_target_that_nothing_computes_is_refused(tmp_path: Path) -> None:
    with patch.dict(ANCHORS, mine=Anchor(to_target, target="nothing")):
        args = RALConfig(output_dir=str(tmp_path), use_cpu=True, attention_anchor="mine", per_device_train_batch_size=8)
        with pytest.raises(ConfigError, match=r"the target 'nothing', which nothing computes.*TARGETS.*ref, explore"):
            RALTrainer("start", args)


def test_an_anchor_is_known_from_when_it_is_added(tmp_path: Path) -> None:
    def config() -> RALConfig:
        return RALConfig(output_dir=str(tmp_path), use_cpu=True, attention_anchor="mine", num_iterations=1)

    with pytest.raises(ConfigError, match="attention_anchor='mine' is not known; choose one of old, ref"):
        config()
    with patch.dict(ANCHORS, mine=ANCHORS["group"]):
        assert config().attention_anchor == "mine"
    with patch.dict(ANCHORS, mine=ANCHORS["old"]), pytest.raises(ConfigError, match="'mine' with num_iterations=1"):
        config()
