"""Encodes the prompts of records ahead of their use: media are decoded, resized and tokenised beside what the GPU does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.data.record_errors import WatchedRecords
from ral.data.settings import PromptSettings
from ral.errors import RalError

#: Prompts that a worker of `encoded` has ready, or at work.
AHEAD = 2


class Again(int):
    """The number of a record whose prompt was encoded earlier in the optimiser step: it is not encoded again."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a worker hands over: the number of a record, and the processor's tensors of its prompt (None for `Again`).

    Not the record, which may hold media. Not a container either: accelerate would move its tensors to the device.
    """

    number: int
    inputs: dict[str, Tensor] | None
    error: RalError | None = None

    def opened(self) -> dict[str, Tensor] | None:
        """The tensors. Raises the error that their record caused in the worker, as it was there."""
        if self.error is not None:
            raise self.error
        return self.inputs


class PromptData(Dataset[Loaded]):
    """The records of a data loader, each encoded when its number is asked for, in whatever process."""

    def __init__(self, records: Sequence[Record], processor: Any, settings: PromptSettings):
        self.reading = WatchedRecords(records)
        self.processor, self.settings = processor, settings

    def __len__(self) -> int:
        return len(self.reading.records)

    def __getitem__(self, number: int) -> Loaded:
        if isinstance(number, Again):
            return Loaded(number, None)
        try:
            with self.reading.record(number) as record:
                return Loaded(number, encode_prompt(self.processor, record, self.settings))
        except RalError as error:  # torch would put a traceback in the place of its message
            return Loaded(number, None, error)


def encoded(data: PromptData, numbers: Sequence[int], workers: int = 0) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The numbers with their encoded prompts, in order; no more than `AHEAD` of each worker exist before they are used.

    Raises what `encode_prompt` raises. The caller runs inside of `watched()`, which names the record that a dead worker read.
    """
    ahead = AHEAD if workers else None
    # A generator of its own: torch's global one belongs to the training that may be going on.
    own = torch.Generator().manual_seed(0)
    for item in DataLoader(
        data, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=ahead, generator=own
    ):
        inputs = item.opened()
        assert inputs is not None
        yield item.number, inputs
