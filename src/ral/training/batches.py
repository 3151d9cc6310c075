"""The order of prompts in training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.config import RALConfig
from ral.data.loading import Again, Loaded, PromptData
from ral.data.mixture import Mixture, Part, epoch_order, shares
from ral.data.record import Record
from ral.errors import ConfigError, UsageError


class RepeatedBatches:
    """Batch sampler: micro-batches of prompt indices, every rollout batch repeated for its inner updates.

    With S micro-batches per rollout batch and process (`steps_per_generation`) and W processes, the micro-batches m_1 … m_{S·W} of
    one rollout batch come `repeats` times in a row, from the second time on as numbers `Again`. accelerate gives every W-th to
    each process, so a process sees its own prompts again. The epoch leaves out an incomplete last rollout batch, because its
    groups would weigh more than others. The shuffle differs between epochs, so no prompt is left out for ever.

    Args:
        size: number of prompts. parts: of a mixture, whose epochs take shares of its sources. batch_size: prompts per micro-batch.
        per_step: S·W. repeats: inner updates (`num_iterations`).
        shuffle, seed: the order of an epoch depends on seed and epoch only.

    Raises:
        ConfigError: fewer prompts than one rollout batch needs.
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
                f"({batch_size} per micro-batch × {per_step} micro-batches); lower per_device_train_batch_size, "
                "gradient_accumulation_steps or steps_per_generation, or add data"
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
        order = self._order(self.epoch)
        for step in range(self.steps):
            for repeat in range(self.repeats):
                for numbers in self._micro_batches(order, step):
                    yield [Again(number) for number in numbers] if repeat else numbers

    def rollout(self, number: int) -> list[list[int]]:
        """The micro-batches of the rollout batch with this number, counted from 0 over all epochs, once."""
        epoch, step = divmod(number, self.steps)
        return self._micro_batches(self._order(epoch), step)

    def others(self, number: int) -> list[int]:
        """The prompts that are not in this rollout batch, in an order of its own: what `dynamic_sampling` draws from."""
        taken = {index for micro_batch in self.rollout(number) for index in micro_batch}
        return [i for i in self._shuffled(hash((self.seed, number)) % 2**62, 0) if i not in taken]

    def _order(self, epoch: int) -> list[int]:
        return self._shuffled(self.seed, epoch) if self.shuffle or self.parts else list(range(self.size))

    def _shuffled(self, seed: int, epoch: int) -> list[int]:
        if self.parts:
            return epoch_order(self.parts, seed, epoch)
        order: list[int] = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        return order

    def _micro_batches(self, order: list[int], step: int) -> list[list[int]]:
        first = step * self.batch_size * self.per_step
        starts = range(first, first + self.batch_size * self.per_step, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]


def training_batches(args: RALConfig, records: Sequence[Record] | None) -> RepeatedBatches:
    """The order of a run's training records.

    Raises UsageError for None, and ConfigError for too few of them, also for `dynamic_sampling`, which draws those that are not
    in the rollout batch.
    """
    if records is None:
        raise UsageError("RALTrainer needs a train_dataset to train")
    batches = RepeatedBatches(
        len(records),
        args.prompts_per_batch,
        args.micro_batches_per_rollout * args.world_size,
        args.num_iterations,
        shuffle=True,
        seed=args.seed,
        parts=records.parts if isinstance(records, Mixture) else (),
    )
    if args.dynamic_sampling and (taken := batches.batch_size * batches.per_step) == batches.size:
        raise ConfigError(
            f"dynamic_sampling draws other prompts of the training data, but one rollout batch takes all {taken}; add data, or "
            "lower per_device_train_batch_size or gradient_accumulation_steps"
        )
    return batches


def step_loader(data: PromptData, batches: RepeatedBatches, args: RALConfig) -> DataLoader[Loaded]:
    """The data loader of training. Its workers encode the prompts of the next rollout batch, and none beyond it."""
    workers, ahead = args.dataloader_num_workers, args.dataloader_prefetch_factor
    if workers and ahead is None:
        # So many micro-batches in a row hold the prompts of one rollout batch, once: the others are `Again`.
        ahead = math.ceil(args.micro_batches_per_rollout * args.num_iterations / workers)
    return DataLoader(
        data,
        batch_sampler=batches,
        collate_fn=list,
        num_workers=workers,
        prefetch_factor=ahead,
        persistent_workers=bool(workers) and args.dataloader_persistent_workers,
    )


class EpochOrder(TrainerCallback):
    """Tells the sampler its epoch also where Trainer does not reach it: in a resumed run on several processes.

    Args:
        updates: optimiser steps per rollout batch.
    """

    def __init__(self, batches: RepeatedBatches, updates: int):
        self.batches, self.updates = batches, updates

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.batches.set_epoch(state.global_step // (self.batches.steps * self.updates))
