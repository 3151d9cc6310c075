"""`samples.jsonl`: rollouts as a reader sees them, a row per completion."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from ral.config import RALConfig
from ral.data.prompt import decode_prompt
from ral.rollouts.group import ScoredGroup
from ral.runs.folder import SAMPLES, append_jsonl


def write_samples(args: RALConfig, processor: Any, step: int, groups: Iterable[ScoredGroup]) -> None:
    """Append the first `samples_per_step` groups of a rollout batch; step: optimiser steps made before."""
    for group in islice(groups, args.samples_per_step):
        prompt = decode_prompt(processor, group.prompt.input_ids)
        append_jsonl(Path(str(args.output_dir)) / SAMPLES, group.samples(step + 1, prompt))
