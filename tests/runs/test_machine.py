"""What a process says it uses."""

from __future__ import annotations

import psutil
import torch

from ral.runs.machine import memory_peak_gib


def test_the_peak_is_what_the_system_says_in_gib() -> None:
    resident = psutil.Process().memory_info().rss / 2**30
    if not torch.cuda.is_available():
        assert 0.95 * resident < memory_peak_gib() < 20 * resident
