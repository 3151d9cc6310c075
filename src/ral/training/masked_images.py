"""The policy's log-probabilities under masked images: the same completions after a prompt whose media are partly black."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ral.attention import prepare_prompt
from ral.config import RALConfig
from ral.data.prompt import encode_prompt
from ral.data.record_errors import name_in_errors
from ral.rollouts.group import ScoredGroup


def blackened(frames: NDArray, share: float, patch: int, generator: np.random.Generator) -> NDArray:
    """`[..., H, W, C]` with squares of `patch` pixels black, each with probability `share`; the same squares in all frames."""
    height, width = frames.shape[-3:-1]
    squares = generator.random((-(-height // patch), -(-width // patch))) < share
    hidden = squares.repeat(patch, axis=0).repeat(patch, axis=1)[:height, :width]
    return np.where(hidden[..., None], np.zeros((), frames.dtype), frames)


def with_masked_media(policy: nn.Module, group: ScoredGroup, processor: Any, args: RALConfig, step: int) -> ScoredGroup:
    """The group behind its prompt with masked images and videos. Media are decoded, and the vision tower runs, once more.

    What is masked depends on the seed, the record and the `step` alone. Raises what `encode_prompt` raises.
    """
    generator = np.random.default_rng([args.seed, step, *group.record.id.encode()])

    def change(frames: NDArray) -> NDArray:
        return blackened(frames, args.perception_mask, args.perception_patch, generator)

    with name_in_errors(group.record):
        inputs = encode_prompt(processor, group.record, args.prompt, change_media=change)
        return replace(group, prompt=prepare_prompt(policy, inputs))
