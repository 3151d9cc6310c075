"""The whole training step as a user gets it: data, rollouts, rewards, old log-probabilities, updates, optimiser.

- `ours`: `RALTrainer` with the paper's anchor; `ours-grpo`: without the attention term.
- `trl`: `GRPOTrainer` with the same weights, records, reward, sampling, loss and number of updates (without the term).

A run is one call of `train()`: one batch of rollouts with two updates on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, Trainer
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from benchmarks.cases import Case, Setting, build_case
from benchmarks.common import Arm
from ral import RALConfig, RALTrainer
from ral.attention.models import special_visual_token_ids
from ral.data.prompt import build_messages

UPDATES = 2


def varied_reward(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Differs inside every group, and costs nothing."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def _shared(setting: Setting) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": setting.prompts * setting.group,
        "num_generations": setting.group,
        "num_iterations": UPDATES,
        "max_completion_length": setting.completion_tokens,
        "max_steps": UPDATES,
        "loss_type": "dapo",
        "beta": 0.0,
        "temperature": 1.0,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "logging_steps": UPDATES,
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
    }


def ours(case: Case, attention: float = 1.0) -> Trainer:
    setting = case.setting
    frames = setting.frames or None
    args = RALConfig(
        **_shared(setting),
        attention_coef=attention,
        gradient_norm_steps=0,
        think=setting.think,
        max_pixels=setting.image_size**2,
        num_frames=frames,
    )
    return RALTrainer(case.model, args, case.records, reward_funcs=varied_reward, processing_class=case.processor)


def trl(case: Case) -> Trainer:
    setting = case.setting
    banned = [*special_visual_token_ids(case.model), case.processor.tokenizer.eos_token_id]
    args = GRPOConfig(
        **_shared(setting),
        steps_per_generation=1,
        gradient_checkpointing=False,
        top_k=0,
        generation_kwargs={"suppress_tokens": banned},
    )
    rows = [
        {
            "prompt": [
                {"role": "user", "content": build_messages(record, think=setting.think)[0]["content"][-1]["text"]}
            ],
            "images": list(record.images),
        }
        for record in case.records
    ]
    return GRPOTrainer(
        model=case.model,
        reward_funcs=varied_reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=case.processor,
    )


WAYS: dict[str, Callable[[Case], Trainer]] = {
    "ours": ours,
    "ours-grpo": lambda case: ours(case, attention=0.0),
    "trl": trl,
}


def build(setting: Setting, name: str) -> Arm:
    """One arm; its unit is the sampled token that is trained on."""
    logging.set_verbosity_error()
    case = build_case(setting)
    trainer = WAYS[name](case)
    trainer.remove_callback(PrinterCallback)
    tokens = setting.prompts * setting.group * setting.completion_tokens
    return Arm(trainer.train, tokens, {"prompt_tokens": case.prompt_tokens})
