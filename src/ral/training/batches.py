"""The order of prompts in training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.config import RALConfig
from ral.data.loading import Again, Encoded, PromptData
from ral.data.mixture import Part, epoch_order, shares
from ral.errors import ConfigError


class RepeatedBatches:
    """Batch sampler: micro-batches of prompt indices, every optimiser step's worth repeated for its inner updates.

    With A accumulation steps and W processes, the micro-batches m_1 … m_{A·W} of one optimiser step come `repeats` times in a
    row, from the second time on as numbers `Again`. accelerate gives every W-th to each process, so a process sees its own prompts again. The epoch leaves out an
    incomplete last step, because its groups would weigh more than others. The shuffle differs between epochs, so no prompt is
    left out for ever.

    Args:
        size: number of prompts. parts: of a mixture, whose epochs take shares of its sources. batch_size: prompts per micro-batch. per_step: A·W. repeats: inner updates.
        shuffle, seed: the order of an epoch depends on seed and epoch only.

    Raises:
        ConfigError: fewer prompts than one step needs.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        per_step: int,
        repeats: int,
        *,
        shuffle: bool,
        seed: int,
        parts: Sequence[Part] = (),
    ):
        size = sum(shares(parts)) if parts else size
        self.steps = size // (batch_size * per_step)
        if self.steps == 0:
            raise ConfigError(
                f"the training data holds {size} prompts, but one optimiser step takes {batch_size * per_step} "
                f"({batch_size} per micro-batch × {per_step} micro-batches); lower per_device_train_batch_size or "
                "gradient_accumulation_steps, or add data"
            )
        self.size, self.batch_size, self.per_step, self.repeats = size, batch_size, per_step, repeats
        self.shuffle, self.seed, self.epoch, self.parts = shuffle, seed, 0, parts
        self.drop_last = True

    @property
    def dropped(self) -> int:
        """Prompts left out of one epoch."""
        return self.size - self.steps * self.batch_size * self.per_step

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.per_step * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        if self.parts:
            order = epoch_order(self.parts, self.seed, self.epoch)
        elif self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        else:
            order = list(range(self.size))
        for step in range(self.steps):
            start = step * self.batch_size * self.per_step
            for repeat in range(self.repeats):
                for i in range(self.per_step):
                    numbers = order[start + i * self.batch_size : start + (i + 1) * self.batch_size]
                    yield [Again(number) for number in numbers] if repeat else numbers


def step_loader(data: PromptData, batches: RepeatedBatches, args: RALConfig) -> DataLoader[Encoded]:
    """The data loader of training. Its workers encode the prompts of the next optimiser step, and none beyond it."""
    workers, ahead = args.dataloader_num_workers, args.dataloader_prefetch_factor
    if workers and ahead is None:
        # So many micro-batches in a row hold the prompts of one step: the others of its rollout batch are `Again`.
        ahead = math.ceil(args.gradient_accumulation_steps * args.num_iterations / workers)
    return DataLoader(
        data,
        batch_sampler=batches,
        collate_fn=list,
        num_workers=workers,
        prefetch_factor=ahead,
        persistent_workers=bool(workers) and args.dataloader_persistent_workers,
    )


class EpochOrder(TrainerCallback):
    """Tells the sampler its epoch also where Trainer does not reach it: in a resumed run on several processes."""

    def __init__(self, batches: RepeatedBatches):
        self.batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.batches.set_epoch(state.global_step // (self.batches.steps * self.batches.repeats))
