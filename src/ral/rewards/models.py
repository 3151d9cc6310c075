"""Reward models: sequence classification models with one label, called as reward functions; and the names of rewards."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ral.rewards.arguments import text_of
from ral.rewards.calls import RewardError, RewardFunction

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class RewardModel:
    """A reward model: the first logit of prompt and completion, as in TRL. It reads words, no media.

    Messages are written with the chat template of the model's own tokenizer; texts follow each other.

    Args:
        model: its device is its own. tokenizer: its own; padded on the right.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str):
        self.model, self.tokenizer, self.__name__ = model.eval(), tokenizer, name
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # The logit is that of the last token that is not padding.
        config: Any = model.config
        config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        texts = [self._text(*one) for one in zip(prompts, completions, strict=True)]
        inputs = self.tokenizer(
            text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        )
        with torch.inference_mode():
            logits: torch.Tensor = self.model(**inputs.to(next(self.model.parameters()).device)).logits
        return logits[:, 0].float().tolist()

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return f"{prompt}{completion}"
        turns = [{"role": turn["role"], "content": text_of([turn])} for turn in (*prompt, *completion)]
        written: str = self.tokenizer.apply_chat_template(turns, tokenize=False)
        return written


def is_model(name: str) -> bool:
    """Whether a name is that of a reward model: a folder, or an owner's model on the hub."""
    return Path(name).is_dir() or _HUB_ID.fullmatch(name) is not None


def load_model(name: str, device: Any) -> RewardModel:
    """Load a reward model from its folder or by its hub id. Raises RewardError where it cannot be loaded or has several labels."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise RewardError(f"reward model {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return RewardModel(model.to(device), tokenizer, Path(name).name)


def as_reward(function: Any, device: Any) -> RewardFunction:
    """A callable as it is; a model as a reward function, with the tokenizer of its own folder, on the device that it has."""
    if not isinstance(function, nn.Module):
        return function  # type: ignore[no-any-return]
    name = str(getattr(function, "name_or_path", ""))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise RewardError(
            f"the tokenizer of the reward model {name!r} cannot be loaded ({error}); give the model's folder or hub id in its place"
        ) from error
    return RewardModel(function, tokenizer, Path(name).name)


def name_of(function: Callable[..., Any]) -> str:
    """The name that a reward is logged under: the function's, behind partials; `lambda`; an object's own or its class's."""
    while isinstance(function, partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    return "lambda" if name == "<lambda>" else name


def is_unnamed(function: Any) -> bool:
    """Whether several of a kind are to be expected under one name: lambdas, partials, and objects of a class."""
    return isinstance(function, partial) or getattr(function, "__name__", "<lambda>") == "<lambda>"
