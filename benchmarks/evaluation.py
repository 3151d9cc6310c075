"""Greedy answers to records, from pixels to tokens, as one batch.

- `ours`: `ral.evaluate.answering.answer`, what `ral eval` does.
- `generate`: the processor and transformers' `generate` on the same prompts.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Case, Setting, build_case
from benchmarks.common import Arm
from ral.evaluate.answering import Answered, answer
from ral.evaluate.settings import EvalSettings


def ours(case: Case) -> list[Answered]:
    setting = case.setting
    settings = EvalSettings(
        max_completion_length=setting.completion_tokens, think=setting.think, max_pixels=setting.image_size**2
    )
    return answer(case.model, case.processor, case.records, settings)


def generate(case: Case) -> torch.Tensor:
    return case.generate([case.encode(record) for record in case.records], do_sample=False)


WAYS = {"ours": ours, "generate": generate}


def build(setting: Setting, name: str) -> Arm:
    """One arm; its unit is the record."""
    case = build_case(setting)
    case.model.eval()
    facts: dict[str, Any] = {"prompt_tokens": case.prompt_tokens}
    return Arm(lambda: WAYS[name](case), setting.prompts, facts)
