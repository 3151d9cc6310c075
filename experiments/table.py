"""The cells of a study by arm and seed, as the page of results and its figures read them."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from experiments.common import RESULTS
from experiments.studies import STUDIES
from experiments.study import read_cells, result_file

FIGURES = RESULTS.parents[1] / "docs" / "assets"


class Table:
    """The cells of one study, by arm and seed."""

    def __init__(self, name: str):
        self.study = STUDIES[name]
        self.cells = {(cell.arm, cell.seed): cell for cell in read_cells(name)}
        self.start = json.loads(result_file(name).read_text(encoding="utf-8"))["start"]
        self.arms = [arm for arm in self.study.arms if self.seeds(arm)]

    def seeds(self, arm: str) -> list[int]:
        return sorted(seed for other, seed in self.cells if other == arm)

    def values(self, arm: str, figure: str = "accuracy") -> NDArray[np.float64]:
        """`[seeds]` of one figure; accuracies in per cent."""
        return np.array([self._figure(arm, seed, figure) for seed in self.seeds(arm)])

    def difference(self, arm: str, other: str, figure: str = "accuracy") -> NDArray[np.float64]:
        """`[seeds]` of arm − other on the seeds that both have."""
        return np.array(
            [self._figure(arm, s, figure) - self._figure(other, s, figure) for s in self.common(arm, other)]
        )

    def common(self, arm: str, other: str) -> list[int]:
        """The seeds that both arms have."""
        return [seed for seed in self.seeds(arm) if (other, seed) in self.cells]

    def _figure(self, arm: str, seed: int, figure: str) -> float:
        return (100.0 if figure == "accuracy" else 1.0) * getattr(self.cells[arm, seed], figure)
