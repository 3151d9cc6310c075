"""The first lines of a run."""

from __future__ import annotations

import json
from pathlib import Path

from ral.attention.models import pretrained
from ral.runs.announcement import announcement, count_rows, parameters, short
from ral.testbed import SHIPPED, load_start


def test_the_first_lines_say_what_the_recipe_says(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text("{}\n\n" * 1200)
    settings = {
        "model": "start", "output_dir": "runs/mine", "data": [{"path": str(data), "weight": 2}, "rings"], "max_steps": 20,
        "eval_data": {"x": "easy-vqa"}, "peft": {"r": 4},
    }  # fmt: skip
    first, second = announcement(Path("mine.yaml"), settings, SHIPPED).splitlines()
    assert first == "mine.yaml → runs/mine; its live report: runs/mine/report.html"
    said = f"loading start (746.3k parameters) under an adapter of rank 4; on {data} (1,200 rows), rings; held out easy-vqa; 20 steps"
    assert second == said
    unknown = announcement(Path("x.yaml"), {"output_dir": "o", "model": "owner/name", "data": "owner/data"}, SHIPPED)
    assert unknown.splitlines()[1] == "loading owner/name; on owner/data"


def test_parameters_are_those_of_the_model() -> None:
    model, _ = load_start()
    own = {id(weight): weight.numel() for weight in pretrained(model).parameters()}
    assert parameters(SHIPPED["start"]) == sum(own.values())
    assert [short(n) for n in (999, 7_500, 7_615_000_000)] == ["999", "7.5k", "7.6B"]


def test_what_cannot_be_counted_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{}]))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert count_rows(tmp_path / "a.json") is None
    assert count_rows(tmp_path / "none.jsonl") is None
    assert parameters(tmp_path) is None
    assert parameters(tmp_path / "nowhere") is None
