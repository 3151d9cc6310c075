"""Supervised fine-tuning on worked examples, the stage before reinforcement; TRL's `SFTTrainer` does the training.

An example is the prompt of reinforcement, encoded by the same code, followed by the record's trace and solution in the format
that reinforcement rewards. The loss covers this completion only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import pad
from trl import SFTConfig, SFTTrainer

from ral.attention.models import family, pretrained, trains_vision
from ral.config import refuse_credentials, refuse_unread_sharding, replayed
from ral.data.answer_boxes import as_asked
from ral.data.field_types import check_values, default_of
from ral.data.mixture import Mixture
from ral.data.prompt import encode_completion, encode_prompt
from ral.data.record import Record
from ral.data.record_errors import WatchedRecords
from ral.data.settings import PromptFields, setting
from ral.errors import ConfigError, DataError
from ral.families import family_of_processor
from ral.families.family import TOKEN_KINDS
from ral.models.adapters import put_adapter
from ral.models.eos_tokens import write_eos_tokens
from ral.models.gathering import gather_vision
from ral.models.loading import freeze_vision, refuse_adapter_of_frozen_vision
from ral.models.lora import lora_config
from ral.models.sharding import zero_vision_loss
from ral.recipe import BaseRecipe
from ral.runs.folder import MetricsWriter
from ral.training.dumps import ExamplesDump
from ral.training.held_out import Sets
from ral.training.launch import run, start_model
from ral.training.nonfinite import NonFiniteGuardTrainer

logger = logging.getLogger(__name__)

#: What stands at positions that the loss leaves out.
IGNORED = -100

#: The tensors of an example with one value a token.
_PER_TOKEN = {"input_ids", "attention_mask", "labels", *TOKEN_KINDS}

#: Settings of TRL's own preparation of text, which `Examples` replaces: they would have no effect.
_PREPARATION = (
    "assistant_only_loss", "chat_template_path", "completion_only_loss", "dataset_kwargs", "dataset_num_proc",
    "dataset_text_field", "eos_token", "eval_packing", "model_init_kwargs", "packing", "packing_strategy", "pad_token",
    "padding_free", "shuffle_dataset", "truncation_mode", "trust_remote_code",
)  # fmt: skip


@dataclass
class SFTSettings(PromptFields, SFTConfig):
    """Settings of supervised fine-tuning, together with `transformers.TrainingArguments` and `trl.SFTConfig`.

    Fields that `RALConfig` has as well mean the same and have the same default.
    """

    freeze_vision: bool = setting(True, "Keep vision tower and projector as they are.")
    max_length: int | None = setting(None, "Longest example in tokens; the end of longer completions is cut.")

    # --- defaults of trl.SFTConfig that differ here -----------------------------------------------------------------
    learning_rate: float = setting(1e-5, "Peak learning rate.")
    num_train_epochs: float = setting(1.0, "Passes over the examples.")
    logging_steps: float = setting(1, "Log every n optimiser steps.")
    logging_nan_inf_filter: bool = setting(False, "A loss that is not a number is shown, not hidden.")
    gradient_checkpointing: bool = setting(None, "The former name of activation_checkpointing.")
    bf16: bool = setting(False, "Mixed precision in bfloat16.")
    remove_unused_columns: bool = setting(False, "Examples are encoded batch by batch, from their number.")
    report_to: str | list[str] | None = setting("none", "Experiment trackers.")
    ddp_find_unused_parameters: bool | None = setting(False, "DDP need not look for them: every pass uses all weights.")
    dataset_kwargs: dict[str, Any] | str | None = field(default_factory=lambda: {"skip_prepare_dataset": True})

    def __post_init__(self) -> None:
        check_values(self, SFTSettings, SFTConfig)
        super().__post_init__()
        refuse_credentials(self)
        refuse_unread_sharding(self)
        self.check_prompt()
        for item in fields(self):
            if item.name in _PREPARATION and getattr(self, item.name) != default_of(item):
                raise ConfigError(
                    f"{item.name} belongs to TRL's own preparation of data, which is not used: examples are encoded as in "
                    "reinforcement; leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class SFTTask(BaseRecipe):
    """The recipe of `ral sft`."""

    args: SFTSettings


def fine_tune(task: SFTTask, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Fine-tune what `task` says on the worked examples of its data, save it in `final/`, and return the run folder.

    Raises DataError for data without a single trace, and what `run` raises.
    """
    return run(task, build_trainer, resume=resume, overwrite=overwrite)


class WorkedExamplesTrainer(NonFiniteGuardTrainer, SFTTrainer):
    """TRL's trainer on batches of `Examples`, stopped before a loss or a gradient that is not a number reaches the weights."""

    args: SFTSettings
    data_collator: Examples

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        # TRL's loss divides by the tokens of the whole optimiser step, whatever the model's own loss could do. Some models
        # (Qwen2.5-VL) say that theirs cannot, and each micro-batch would count the same however short its completions are.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        self._micro_batches, self._items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._micro_batches, self._items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As TRL's, but works if only some processes have media, and checks the loss before its backward pass in training."""
        gather_vision(self.model)
        kind = family(base := pretrained(self.model))
        in_prompt = (inputs["labels"] == IGNORED) & inputs["attention_mask"].bool()
        inputs = inputs | kind.per_token(base, inputs["input_ids"], in_prompt)
        if (positions := kind.batch_positions(base.config, inputs)) is not None:
            inputs["position_ids"] = positions
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = computed if isinstance(computed, tuple) else (computed,)
        if not any(name.startswith("pixel_values") for name in inputs) and trains_vision(base):
            loss = loss + zero_vision_loss(self.model)
        if model.training:
            self.require_finite_losses(loss)
        return (loss, *outputs) if outputs else loss

    def dump(self, what: str) -> ExamplesDump:
        return ExamplesDump(
            what=what,
            step=self.state.global_step,
            max_steps=self.state.max_steps,
            settings=replayed(self.args),
            micro_batches=self._micro_batches,
            items=None if self._items is None else int(self._items),
        )


def build_trainer(task: SFTTask, train: list[Record], held_out: Sets | None) -> WorkedExamplesTrainer:
    """The trainer of a task on its data. Raises ConfigError for an adapter of a frozen vision tower; see `fine_tune`."""
    args = task.args
    if isinstance(train, Mixture):
        raise ConfigError(
            "weight of a source belongs to `ral train`; `ral sft` takes every record once an epoch: leave it out"
        )
    sets = held_out if isinstance(held_out, dict) else {"": held_out or []}
    parts = [worked_examples(one, think=args.think) if one else [] for one in (train, *sets.values())]
    model, processor = start_model(task)
    write_eos_tokens(model, processor)
    if args.freeze_vision:
        freeze_vision(model)
    adapter = lora_config(task, model, args.freeze_vision)
    policy = model if adapter is None else put_adapter(model, adapter, args.seed)
    refuse_adapter_of_frozen_vision(model, args.freeze_vision)
    records = [record for part in parts for record in part]
    places = list(accumulate((len(part) for part in parts), initial=0))
    numbers = Dataset.from_dict({"number": range(len(records))})
    train_set, *held = (numbers.select(range(*place)) if len(range(*place)) else None for place in pairwise(places))
    evaluated: Any = dict(zip(sets, held, strict=True))
    return WorkedExamplesTrainer(
        policy,
        args,
        data_collator=Examples(processor, WatchedRecords(records), args),
        train_dataset=train_set,
        eval_dataset=(evaluated if isinstance(held_out, dict) else evaluated[""]) if held_out else None,
        processing_class=processor,
        callbacks=[MetricsWriter()],
    )


def worked_examples(records: Sequence[Record], *, think: bool) -> list[Record]:
    """The records that can be taught: those with a trace, where thinking is. How many have none is logged.

    Raises DataError when none has one.
    """
    taught = [record for record in records if record.trace is not None or not think]
    if not taught:
        raise DataError(
            f"none of {len(records)} records has a trace, the worked thinking that fine-tuning teaches; "
            "give data with traces, or set think to false to teach bare answers"
        )
    if len(taught) < len(records):
        logger.warning("%d of %d records have no trace and are left out", len(records) - len(taught), len(records))
    return taught


@dataclass(frozen=True)
class Examples:
    """Data collator: numbers of records → the batch they make. Media are decoded here, a batch at a time."""

    processor: Any
    records: WatchedRecords
    args: SFTSettings

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` (and the kinds of tokens) `[B, T]`, padded right, and the pixels.

        Pixels of images that differ in size or in their number of tiles are padded at their end; every model is told, or sees,
        what is padding.
        """
        # Any token may fill up: neither attention nor the loss counts it. Not every model has one for that.
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        fillers = {"input_ids": tokenizer.eos_token_id, "labels": IGNORED}
        examples = [self.example(row["number"]) for row in rows]
        kind, batch = family_of_processor(self.processor), {}
        for name in dict.fromkeys(name for example in examples for name in example):
            parts = [example[name] for example in examples if name in example]
            filler = fillers.get(name, 0) if name in _PER_TOKEN else kind.filler(name)
            batch[name] = _one_below_the_other(parts, filler)
        return batch

    def example(self, number: int) -> dict[str, Tensor]:
        with self.records.record(number) as record:
            return self.encode(record)

    def encode(self, record: Record) -> dict[str, Tensor]:
        """One example as the model's input, with `labels` `[1, T]` that count the completion alone.

        Raises DataError for what `encode_prompt` and `encode_completion` refuse, and a prompt that fills `max_length`.
        """
        args = self.args
        inputs = encode_prompt(self.processor, record, args.prompt)
        prompt = inputs["input_ids"].shape[1]
        record = as_asked(record, self.processor, inputs)
        completion = encode_completion(self.processor, record, args.prompt)[None]
        if args.max_length is not None:
            if prompt >= args.max_length:
                raise DataError(
                    f"{record.origin}: the prompt alone has {prompt} tokens, max_length is {args.max_length}; "
                    "raise it, or lower max_pixels or num_frames"
                )
            completion = completion[:, : args.max_length - prompt]
        added = {"input_ids": completion, "attention_mask": torch.ones_like(completion)}
        for name in _PER_TOKEN & inputs.keys():
            inputs[name] = torch.cat([inputs[name], added.get(name, torch.zeros_like(completion))], dim=1)
        inputs["labels"] = torch.cat([torch.full((1, prompt), IGNORED), completion], dim=1)
        return inputs


def _one_below_the_other(parts: Sequence[Tensor], filler: float) -> Tensor:
    """Tensors joined along their first axis; the others are filled up at their end to the longest."""
    longest = [max(lengths) for lengths in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [long - own for long, own in zip(longest, part.shape[1:], strict=True)]
        padded.append(pad(part, [n for axis in reversed(missing) for n in (0, axis)], value=filler))
    return torch.cat(padded)
