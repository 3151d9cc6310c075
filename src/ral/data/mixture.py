"""Mixtures of data: the weights of several sources, and the records that an epoch takes of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch

from ral.data.record import Record
from ral.errors import DataError


class Part(NamedTuple):
    """One source of a mixture: its number of records and its weight."""

    size: int
    weight: float


class Mixture(list[Record]):
    """The records of several sources, one source after the other, of which training takes shares by weight.

    Raises DataError for a source without records, and for one of which an epoch would take none.
    """

    def __init__(self, sources: Sequence[Sequence[Record]], weights: Sequence[float]):
        super().__init__(chain.from_iterable(sources))
        self.parts = tuple(Part(len(one), float(w)) for one, w in zip(sources, weights, strict=True))
        if empty := [number for number, part in enumerate(self.parts, 1) if not part.size]:
            raise DataError(f"source {empty[0]} of the mixture has no records")
        if rare := [number for number, share in enumerate(shares(self.parts), 1) if not share]:
            raise DataError(f"source {rare[0]} of the mixture has so small a weight that an epoch takes none of it")


def shares(parts: Sequence[Part]) -> list[int]:
    """Records that an epoch takes of every part: as many, in the ratio of the weights, as none has to repeat one."""
    total = sum(part.weight for part in parts)
    size = min(part.size * total / part.weight for part in parts)
    return [min(part.size, int(size * part.weight / total + 1e-9)) for part in parts]


def epoch_order(parts: Sequence[Part], seed: int, epoch: int) -> list[int]:
    """The records that an epoch takes, as places in the mixture, shuffled.

    It goes on in every source where the epoch before stopped, so that each record is met equally often over epochs. It depends
    on nothing but its arguments: not on the number of processes, nor on where a run was resumed.
    """
    order, first = [], 0
    for number, (part, share) in enumerate(zip(parts, shares(parts), strict=True)):
        passes = range(epoch * share // part.size, ((epoch + 1) * share - 1) // part.size + 1)
        stream = [place for one in passes for place in _shuffled(part.size, hash((seed, number, one)) % 2**63)]
        start = epoch * share - passes.start * part.size
        order += [first + place for place in stream[start : start + share]]
        first += part.size
    return [order[i] for i in _shuffled(len(order), seed + epoch)]


def _shuffled(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
