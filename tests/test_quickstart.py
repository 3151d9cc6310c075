"""`ral quickstart` for real, with two updates and a handful of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ral.quickstart import ARMS, LOOK_ITEMS, SETTINGS, START, run_quickstart


def test_every_arm_is_trained_from_the_start_evaluated_and_reported(tmp_path: Path) -> None:
    page = run_quickstart(tmp_path, steps=2, held_out=6)
    assert page == tmp_path / "report.html"
    description = json.loads((tmp_path / "quickstart.json").read_text(encoding="utf-8"))
    assert [arm["path"] for arm in description["arms"]] == [START.name, *(arm.name for arm in ARMS)]
    assert all(seconds > 0 for seconds in description["seconds"].values())
    html = page.read_text(encoding="utf-8")
    for arm in (START, *ARMS):
        summary = json.loads((tmp_path / arm.name / "eval/rings/summary.json").read_text(encoding="utf-8"))
        assert (summary["model"], summary["n"]) == (arm.label, 6)
        assert arm.label in html
    first = []
    for arm in ARMS:
        settings = yaml.safe_load((tmp_path / arm.name / "config.yaml").read_text(encoding="utf-8"))
        shared = {key: value for key, value in SETTINGS.items() if key not in {*arm.changes, "max_steps"}}
        assert shared.items() <= settings.items(), "arms differ in what they name and in nothing else"
        metrics = [json.loads(line) for line in (tmp_path / arm.name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in metrics] == [1, 2]
        samples = (tmp_path / arm.name / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        first.append(json.loads(samples[0])["question"])
        looks = [json.loads(line) for line in (tmp_path / arm.name / "looks/items.jsonl").read_text().splitlines()]
        assert [row["step"] for row in looks] == [0] * LOOK_ITEMS + [2] * LOOK_ITEMS
        assert (tmp_path / arm.name / "final/model.safetensors").exists()
    assert "Learning to look" in html
    assert 'id="live"' not in html, "it is over"
    assert len(set(first)) == 1, "all arms see the same prompts in the same order"
    with pytest.raises(ValueError, match="--overwrite"):
        run_quickstart(tmp_path, steps=2, held_out=6)
