"""`sync_ref_model`: the reference follows the policy (TR-DPO, arXiv 2404.09656)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.config import RALConfig
from ral.errors import ConfigError
from ral.models.reference import Reference


class MovingReference(TrainerCallback):
    """Mixes the policy into the reference every `ref_model_sync_steps`; a checkpoint holds the reference then.

    Rollouts that were made before are compared with the reference that they were made with, up to their last inner update.

    Raises ConfigError for an adapter: its reference is the policy without it, which does not move.
    """

    def __init__(self, reference: Reference, policy: nn.Module, args: RALConfig, accelerator: Accelerator):
        if isinstance(policy, PeftModel):
            raise ConfigError(
                "sync_ref_model with an adapter (peft): the reference is the model without the adapter, which does not move; leave "
                "sync_ref_model out, or train all weights"
            )
        self.reference, self.policy, self.accelerator = reference, policy, accelerator
        self.every, self.share = args.ref_model_sync_steps, args.ref_model_mixup_alpha

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.reference.move(self.policy, self.share)

    def save(self, checkpoint: Path) -> None:
        """All processes must call this."""
        self.reference.save(checkpoint, self.accelerator)

    def load(self, checkpoint: Path) -> None:
        """Raises RunError where the checkpoint holds no reference."""
        self.reference.load(checkpoint, self.accelerator)


def follow_policy(trainer: Any) -> list[MovingReference]:
    """Let the reference of an `RALTrainer` follow its policy, if the settings say so. Returns what checkpoints hold besides.

    Raises ConfigError as `MovingReference` does.
    """
    if not trainer.args.sync_ref_model:
        return []
    moving = MovingReference(trainer.reference, trainer.model, trainer.args, trainer.accelerator)
    trainer.add_callback(moving)
    return [moving]
