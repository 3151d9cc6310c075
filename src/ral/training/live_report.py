"""Updates the report while a run goes on."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.report import write_report

logger = logging.getLogger(__name__)

#: Seconds between two writings of the page, at least.
INTERVAL = 20.0
#: Share of the run's time that writing it may take.
SHARE = 0.02


class LiveReport(TrainerCallback):
    """Keeps `report.html` in the run folder up to date, as a page that reloads itself until the run is over.

    If the page cannot be written, the log says so and the run goes on.
    """

    def __init__(self) -> None:
        self._due = 0.0

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        begun = time.monotonic()
        if not state.is_world_process_zero or begun < self._due:
            return
        try:
            write_report(Path(str(args.output_dir)), running=True)
        except Exception:
            logger.exception("the report of the run that goes on could not be written")
        took = time.monotonic() - begun
        self._due = begun + max(INTERVAL, took / SHARE)
