"""G completions behind every prompt, from the prompt's tensors to the tokens, the vision tower included.

- `ours`: `ral.rollouts.sampling.sample`.
- `generate`: transformers' `generate(num_return_sequences=G)` on the prompts as one batch.

Both draw from the whole softmax at temperature 1, never one of the tokens with a visual meaning.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Case, Setting, build_case
from benchmarks.common import Arm
from ral.attention import prepare_prompt
from ral.rollouts.sampling import Sampling, eos_token_ids, sample


def ours(case: Case) -> list[list[torch.Tensor]]:
    sampling = Sampling(case.setting.completion_tokens, eos_token_ids(case.model))
    prompts = [prepare_prompt(case.model, inputs) for inputs in case.inputs]
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    groups = sample(case.model, prompts, case.setting.group, sampling, generators)
    return [[completion.ids for completion in group] for group in groups]


def generate(case: Case) -> torch.Tensor:
    return case.generate(case.inputs, do_sample=True, top_k=0, num_return_sequences=case.setting.group)


WAYS = {"ours": ours, "generate": generate}


def build(setting: Setting, name: str) -> Arm:
    """One arm; its unit is the sampled token."""
    case = build_case(setting)
    case.model.eval()
    facts: dict[str, Any] = {"prompt_tokens": case.prompt_tokens}
    tokens = setting.prompts * setting.group * setting.completion_tokens
    return Arm(lambda: WAYS[name](case), tokens, facts)
