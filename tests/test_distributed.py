"""Several real processes against one, on the same global batches of images, videos and text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from experiments.processes import Case, run

#: What the processes of a run measure together; the loss itself passes through zero.
COMPARED = ("grad_norm", "reward", "kl", "entropy", "visual_share", "completion_length")
CASES = {
    "think, explore, accumulated": (Case("think", 4, attention_anchor="explore", accumulation=2), "ddp", 2),
    "mixed": (Case("mixed", 4), "fsdp2", 2),
    "mixed, adapter": (Case("mixed", 4, adapter=True), "fsdp2", 2),
    "mixed, vision trained": (Case("mixed", 6, freeze_vision=False), "ddp", 4),
    "mixed, ZeRO-2": (Case("mixed", 4), "zero2", 2),
}


@pytest.mark.parametrize("name", CASES)
def test_several_processes_are_one_with_the_same_batches(name: str, tmp_path: Path) -> None:
    case, engine, processes = CASES[name]
    if case.data == "mixed":
        pytest.importorskip("minigrid")
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    alone, expected = run(case, "ddp", 1, tmp_path / "alone")
    metrics, parameters = run(case, engine, processes, tmp_path / "together")
    assert [row["step"] for row in metrics] == list(range(1, case.steps + 1))
    assert any(row["visual_share"] for row in alone)
    largest = max(abs(row["loss"]) for row in alone)
    for row, other in zip(alone, metrics, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], abs=1e-5 * largest), row["step"]
        for metric in COMPARED:
            assert other[metric] == pytest.approx(row[metric], rel=1e-4, abs=1e-6), (row["step"], metric)
    assert parameters.keys() == expected.keys()
    for parameter, value in expected.items():
        torch.testing.assert_close(parameters[parameter], value, atol=2e-5, rtol=0)
