"""Means between two logged steps: over groups by weight, and over processes that may not all have seen a metric."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ral.objective.terms import Mean
from ral.training import running_means
from ral.training.running_means import RunningMeans


def mean(total: float, weight: float) -> Mean:
    return Mean(torch.tensor(total), torch.tensor(weight))


def test_means_are_weighted_and_a_metric_without_weight_is_left_out() -> None:
    means = RunningMeans()
    means.add({"loss": mean(2.0, 1.0), "kl": mean(0.0, 0.0)})
    means.add({"loss": mean(10.0, 3.0)})
    alone: Any = SimpleNamespace(num_processes=1, device="cpu", reduce=lambda table, reduction: table)
    assert means.averages(alone) == {"loss": 3.0}
    assert RunningMeans().averages(alone) == {}


def test_all_processes_average_the_metrics_that_any_of_them_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of one shape and order are summed, so a process has zeros for what it did not see."""
    ours, theirs = RunningMeans(), RunningMeans()
    ours.add({"b": mean(1.0, 1.0), "c": mean(4.0, 2.0)})
    theirs.add({"a": mean(6.0, 2.0), "c": mean(2.0, 1.0)})
    tables: list[Tensor] = []

    def accelerator(other: Tensor | None) -> Any:
        def reduce(table: Tensor, reduction: str) -> Tensor:
            assert reduction == "sum"
            tables.append(table)
            return table if other is None else table + other

        return SimpleNamespace(num_processes=2, device="cpu", reduce=reduce)

    monkeypatch.setattr(running_means, "gather_object", lambda names: ["b", "c", "a", "c"])
    theirs.averages(accelerator(None))
    assert ours.averages(accelerator(tables[0])) == {"a": 3.0, "b": 1.0, "c": 2.0}
    assert [table.shape for table in tables] == [(3, 2), (3, 2)]
