"""Selects the earlier positions that the attention policy covers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ral.attention.rows import renormalise
from ral.errors import DataError

Keys = Literal["all", "prompt", "visual", "interior"]


def select_keys(rows: Tensor, keys: Keys, prompt_length: int, visual: Tensor, skip: int = 0) -> Tensor:
    """Restrict policy rows to a set of keys and renormalise them.

    Args:
        rows: `[G, R, P+R]` policy rows; visual: `[P]` bool, true on the prompt's visual tokens, or for `interior` on those off the
            edge of their picture, where attention sinks gather.
        skip: leading prompt tokens that are left out, as attention sinks.

    Returns:
        `[G, R, K]` with K = P+R (`all`), P (`prompt`), each less `skip`, or the number of visual tokens (`visual`, `interior`).

    Raises:
        DataError: `keys="visual"` or `"interior"` for a prompt without such tokens.
    """
    if keys == "all":
        return renormalise(rows[..., skip:]) if skip else rows
    if keys == "prompt":
        return renormalise(rows[..., skip:prompt_length])
    if not bool(visual.any()):
        raise DataError(
            f'attention_keys="{keys}", but a prompt has no {keys} tokens; '
            'use attention_keys="prompt" or "all" for text, or check that the image reached the processor'
        )
    return renormalise(rows[..., :prompt_length][..., visual])


def visual_share(rows: Tensor, own: Tensor, mask: Tensor, visual: Tensor) -> Tensor:
    """Mean attention mass on visual tokens (scalar), over completion tokens; rows include the token itself here.

    Args:
        rows: `[G, R, P+R]` policy rows; own: `[G, R]` what each token gives to itself; mask: `[G, R]`; visual: `[P]` bool.
    """
    mass = torch.where(visual, rows[..., : len(visual)], 0.0).sum(dim=-1) * (1 - own)
    return torch.where(mask, mass, 0.0).sum() / mask.sum()
