"""Sealed checkpoints and exact resume for transformers' Trainer.

Trainer has no public interface for saving and loading. This file holds all overrides of private methods.
`tests/training/test_exact_resume.py` fails if one of them changes its meaning.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import DistributedType, gather_object
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from ral.attention.models import is_sharded, pretrained
from ral.data.record_errors import watched
from ral.errors import refused_by
from ral.files import atomic_write_text
from ral.models.sharding import full_state_dict
from ral.models.shards import save_without_weights, saves_shards
from ral.models.zero3 import is_zero3, left_whole
from ral.runs.checkpoints import (
    CheckpointError,
    Share,
    digests,
    fault,
    good_checkpoint,
    keep_newest,
    last_checkpoint,
    newest_good_checkpoint,
    read_manifest,
    remove,
    seal,
)
from ral.runs.interruption import Interrupted, Interruption
from ral.runs.names import TRAINING_ARGS
from ral.runs.redaction import without_credentials

logger = logging.getLogger(__name__)


class Saved(Protocol):
    """What a checkpoint holds besides Trainer's files. All processes call both."""

    def save(self, checkpoint: Path) -> None: ...
    def load(self, checkpoint: Path) -> None: ...


class ExactResumeTrainer(Trainer):
    """A mixin for Trainer classes, with sealed checkpoints and exact resume.

    Attributes:
        beside: what checkpoints hold besides; loaded after the weights, and sealed with them.
    """

    model: nn.Module
    beside: Sequence[Saved] = ()

    def __init__(self, *arguments: Any, **named: Any):
        self._resumed_from: Path | None = None
        self._resumed_step: int | None = None
        self._random_state_of: str | None = None  # the checkpoint, until its state is restored
        with refused_by("transformers", "settings of the trainer"):
            super().__init__(*arguments, **named)
        self.interruption = Interruption(every=getattr(self.args, "updates_per_rollout", 1))
        for callback in (self.interruption, LogBeforeSave()):
            self.add_callback(callback)

    @watched()
    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **named: Any) -> Any:
        """As Trainer's, but checks every file of a checkpoint before it reads one.

        Args:
            resume_from_checkpoint: the folder of a checkpoint; True: the newest good one in `output_dir`.

        Raises:
            CheckpointError: the checkpoint is unfinished, damaged or holds weights alone, or there is no good one.
            WorkerError: a data-loading process (`dataloader_num_workers`) died; the error names its record.
            Interrupted: SIGTERM or Ctrl-C ended the run before its last step; it is saved.
        """
        checkpoint = self._checked(resume_from_checkpoint) if resume_from_checkpoint else None
        self._resumed_from = checkpoint
        self._resumed_step = None if checkpoint is None else _global_step(checkpoint)
        self._random_state_of = None if checkpoint is None else str(checkpoint)
        try:
            output = super().train(None if checkpoint is None else str(checkpoint), *arguments, **named)
        finally:
            self.interruption.restore()
        if self.interruption.received is not None and self.state.global_step < self.state.max_steps:
            logger.warning(
                "the run was interrupted after step %d of %d and is saved in %s; go on with --resume",
                self.state.global_step,
                self.state.max_steps,
                last_checkpoint(self._folder),
            )
            raise Interrupted(self.interruption.received)
        return output

    def start(self) -> None:
        """Called once the model is prepared (sharded), while its weights are those that training starts from."""

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        """As Trainer's, which also loads the checkpoint of a sharded model."""
        self._is_started = False
        with left_whole(self.accelerator, self.model):
            prepared = super()._prepare_for_training(*arguments, **named)
        if self.is_deepspeed_enabled and self._resumed_from is not None:  # which reads weights in a way of its own
            self._load_beside(self._resumed_from)
        self._start_once()
        return prepared

    def _start_once(self) -> None:
        if not self._is_started:
            self.start()
            self._is_started = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """As Trainer's, but returns nothing for a run that resumed at its end, to which Trainer would give one more step.

        Behind it the random state is the checkpoint's, also in the middle of an epoch, where Trainer restores it after the
        rollouts, whose reward functions may draw from it.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._load_rng_state(self._random_state_of)
        return samples

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As Trainer's, once for every resume."""
        if self._random_state_of is not None:
            super()._load_rng_state(checkpoint)
            self._random_state_of = None

    def _checked(self, wanted: str | Path | bool) -> Path:
        """The checkpoint to go on from; found good or refused by all processes, each of which reads its share of the files."""
        if wanted is True:
            checkpoint = newest_good_checkpoint(self._folder, self._fault)
        else:
            checkpoint = good_checkpoint(str(wanted), self._fault)
        if (manifest := read_manifest(checkpoint)) and manifest["processes"] != self.args.world_size:
            logger.warning(
                "%s was saved by %d processes, this run has %d: it goes on, but not bit for bit",
                checkpoint.name,
                manifest["processes"],
                self.args.world_size,
            )
        return checkpoint

    def _fault(self, checkpoint: Path) -> str | None:
        """`fault` of all processes together, the same on each of them."""
        found = gather_object([fault(checkpoint, self._share)])
        return next((problem for problem in found if problem is not None), None)

    @property
    def _share(self) -> Share:
        return self.args.process_index, self.args.world_size

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's, but writes the settings as JSON instead of a pickle, which can run code.

        A sharded model is gathered for it, one weight after the other. A sharded checkpoint has its weights in shards already.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if not (self.is_fsdp_enabled or is_sharded(self.model)):
            super().save_model(output_dir, _internal_call)
        elif _internal_call and saves_shards(self.accelerator) and not isinstance(self.model, PeftModel):
            if self.args.should_save:
                save_without_weights(pretrained(self.model), self.processing_class, folder)
        else:
            self._save(str(folder), full_state_dict(self.model_wrapped, self.accelerator))
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        if self.args.should_save:
            settings = without_credentials(self.args.to_dict())
            atomic_write_text(folder / TRAINING_ARGS, json.dumps(settings, indent=1) + "\n")
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer's, of what DeepSpeed has seen of the model: the rest is whole, and in the model's own file."""
        with left_whole(self.accelerator, self.model):
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's, sealed once every process has written its files; only then may older checkpoints go.

        Raises CheckpointError where it cannot be saved, with what was written removed and earlier checkpoints untouched.
        """
        if self.state.global_step == self._resumed_step:
            return  # nothing was trained since, and saving would break up the very checkpoint the run went on from
        checkpoint, args, main = self._folder / f"checkpoint-{self.state.global_step}", self.args, self.args.should_save
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            if main:
                remove(checkpoint)  # of a save that was cut off: none of its files may be taken for a new one
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            for part in self.beside:
                part.save(checkpoint)
            self.accelerator.wait_for_everyone()
            hashed = gather_object([digests(checkpoint, self._share)])
            if main:
                files = {name: value for share in hashed for name, value in share.items()}
                seal(checkpoint, processes=args.world_size, resumable=not args.save_only_model, files=files)
        except Exception as error:  # OSError, or what torch and safetensors make of it
            remove(checkpoint)
            raise CheckpointError(self._not_saved(checkpoint, error)) from error
        finally:
            args.save_total_limit = limit
        if main and limit is not None and limit > 0:
            best = self.state.best_model_checkpoint
            keep_newest(self._folder, limit, None if best is None else Path(best))
        self.accelerator.wait_for_everyone()

    def _not_saved(self, checkpoint: Path, error: Exception) -> str:
        free = shutil.disk_usage(self._folder).free / 2**20
        earlier = last_checkpoint(self._folder)
        kept = "there is no earlier one" if earlier is None else f"{earlier} is untouched"
        return (
            f"{checkpoint} could not be saved ({type(error).__name__}: {error}); what was written of it is removed, and "
            f"{kept}. {free:,.0f} MiB are free there: make room (save_total_limit keeps fewer) and go on with --resume."
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights of a checkpoint, read as `from_pretrained` reads them.

        Trainer's own method looks for the model's names in the file, where Qwen2-VL's and Qwen2.5-VL's are other ones: it
        would load nothing, and go on from the start model with a warning (huggingface/transformers#43701).
        """
        if self.is_fsdp_enabled:
            self._start_once()
            # Each new `AcceleratorState` sets it back (accelerate 1.15), and loading would wait for processes that skip it.
            self.accelerator.state.distributed_type = DistributedType.FSDP
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            base = pretrained(self.model)
            saved = type(base).from_pretrained(resume_from_checkpoint, dtype=base.dtype)
            base.load_state_dict(saved.state_dict())
        self._load_beside(Path(resume_from_checkpoint))

    def _load_beside(self, checkpoint: Path) -> None:
        for part in self.beside:
            part.load(checkpoint)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        best = good_checkpoint(self.state.best_model_checkpoint)
        if is_zero3(self.accelerator):
            with left_whole(self.accelerator, self.model):
                super()._load_best_model()
        else:
            self._load_from_checkpoint(str(best), self.model_wrapped)


def _global_step(checkpoint: Path) -> int:
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step


class LogBeforeSave(TrainerCallback):
    """A checkpoint closes the interval of the log, whose sums it does not hold."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save
