"""Several real processes against one, on the same global batch of images and text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ral.files import read_jsonl

STEPS = 6
COMPARED = (
    "loss",
    "grad_norm",
    "reward",
    "kl",
    "entropy",
    "attention/jsd_positive",
    "visual_share",
    "completion_length",
)


def run(folder: Path, processes: int) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The metrics and the parameters at the end."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [sys.executable, *launcher, "tests.distributed_run", str(folder), str(STEPS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    return list(read_jsonl(folder / "metrics.jsonl")), load_file(folder / "end.safetensors")


def test_two_processes_are_one_with_the_same_batch(tmp_path: Path) -> None:
    alone, expected = run(tmp_path / "1", 1)
    metrics, parameters = run(tmp_path / "2", 2)
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    assert any(row["visual_share"] for row in alone)
    for row, other in zip(alone, metrics, strict=True):
        for name in COMPARED:
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), (row["step"], name)
    for name, parameter in expected.items():
        torch.testing.assert_close(parameters[name], parameter, atol=1e-5, rtol=0)
