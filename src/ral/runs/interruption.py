"""SIGTERM and Ctrl-C: saves the run at a point where it can resume exactly, and ends it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds in which a second signal is the echo of the first: a launcher passes on the Ctrl-C that every process got.
ECHO = 2.0


class Interrupted(SystemExit):
    """A signal ended the run after a save. If not caught, the process exits with the shell's code for this signal."""

    def __init__(self, number: int):
        super().__init__(128 + number)


class Interruption(TrainerCallback):
    """Saves and ends the run after a signal, at the end of the current rollout batch.

    A second signal, after two seconds, ends it at once. Signals can be taken in the main thread only; elsewhere they do what
    they did before.

    Args:
        every: optimiser steps of one rollout batch.
    """

    def __init__(self, every: int = 1):
        self.every = every
        self.received: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 and self._anywhere():
            control.should_save = control.should_training_stop = True

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
            logger.warning(
                "%s: the run is saved at the end of its rollout batch, and ends; once more ends it at once",
                signal.Signals(number).name,
            )
        elif time.monotonic() - self._at > ECHO:
            self.restore()
            signal.raise_signal(number)

    def _anywhere(self) -> bool:
        """Whether any process got a signal, asked by all of them at the same step; then it counts for each."""
        state = PartialState()
        number = torch.tensor(float(self.received or 0), device=state.device)
        if state.num_processes > 1:
            number = reduce(number, reduction="sum") / state.num_processes
        if number > 0 and self.received is None:
            self.received = int(signal.SIGTERM)
        return bool(number > 0)
