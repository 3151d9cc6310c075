"""Running means of metrics between two logged steps, over groups and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ral.objective.terms import Mean


class RunningMeans:
    """Sums of `Mean`s by name."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Mean]) -> None:
        for name, metric in metrics.items():
            pair = torch.stack([metric.total.float().cpu(), metric.weight.float().cpu()])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def averages(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of every observed metric over all processes. All processes must call this."""
        names = sorted(self._sums)
        if accelerator.num_processes > 1:
            names = sorted(set(gather_object(names)))
        if not names:
            return {}
        table = torch.stack([self._sums.get(name, torch.zeros(2)) for name in names])
        table = accelerator.reduce(table.to(accelerator.device), reduction="sum").cpu()
        return {name: float(total / weight) for name, (total, weight) in zip(names, table, strict=True) if weight > 0}
