"""The benchmark compares what is the same computation, and says so before it times anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.common import median_ratio, write_result
from benchmarks.update_step import ARMS, TWINS, Setting, build_case, differences, measure, table

SMALL = Setting(image_size=32, completion_tokens=4, group=4, layers=2, hidden=128)


def test_every_peer_computes_our_loss_and_gradient() -> None:
    case = build_case(SMALL)
    found = differences({name: arm(case) for name, arm in ARMS.items()})
    assert found.keys() == TWINS.keys()
    for gap in found.values():
        assert gap["loss"] == pytest.approx(0, abs=1e-6)
        assert gap["gradient_relative"] < 1e-4


def test_a_measurement_is_written_with_where_it_was_made(tmp_path: Path) -> None:
    result = measure(SMALL, ["ours", "ours+attention"], repeats=2, threads=1)
    write_result(tmp_path / "result.json", result)
    kept = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert kept["time_ratio"]["ours"]["ours"] == 1
    assert kept["environment"]["machine"]["cpu_count"] > 0
    assert len(kept["all_seconds"]["ours"]) == 2
    assert "ours+attention" in table(result)
    assert median_ratio([2.0, 4.0, 9.0], [1.0, 1.0, 3.0]) == 3
