"""The resources of the machine that a process uses."""

from __future__ import annotations

import resource
import sys

import torch


def memory_peak_gib() -> float:
    """Peak memory so far in GiB: allocated on the GPU where there is one, else resident in the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes there, KiB elsewhere
