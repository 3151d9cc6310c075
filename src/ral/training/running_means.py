"""Running means of metrics between two logged steps, over groups and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ral.objective.terms import Mean


class RunningMeans:
    """Sums of `Mean`s by name."""

    def __init__(self) -> None:
        self._sums: dict[str, Mean] = {}

    def add(self, metrics: Mapping[str, Mean]) -> None:
        """Add observations. Sums stay on the devices that they are made on, so that nothing waits for these."""
        for name, metric in metrics.items():
            before, found = self._sums.get(name), Mean(metric.total.float(), metric.weight.float())
            self._sums[name] = (
                found if before is None else Mean(before.total + found.total, before.weight + found.weight)
            )

    def averages(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of every observed metric over all processes. All processes must call this."""
        names = sorted(self._sums)
        if accelerator.num_processes > 1:
            names = sorted(set(gather_object(names)))
        if not names:
            return {}
        nothing = Mean(torch.zeros(()), torch.zeros(()))
        sums = [number.to(accelerator.device) for name in names for number in self._sums.get(name, nothing)]
        table = accelerator.reduce(torch.stack(sums).view(-1, 2), reduction="sum").cpu()
        return {name: float(total / weight) for name, (total, weight) in zip(names, table, strict=True) if weight > 0}
