"""VPPO (arXiv 2510.09285): the advantage acts on the tokens that depend on the image, and more in completions that do.

From the paper's code (huaixuheqing/VPPO-RL): the dependence of a token is k3(π_old ‖ π_masked), bounded by 10; squares of 14 pixels
are black with probability 0.5. Of every completion the share k = 0.4 of tokens with the highest dependence is trained. The
completion's advantage is scaled by its mean dependence, which is mapped to [β_min, β_max]; β_min = 0.9, and β_max is such that
the mean factor is 1. There lowest and highest come from a mini-batch; here from the group, so that the update depends neither on
the number of processes nor on accumulation. Tokens that are not trained still count in the divisor of the loss.

Where tokens depend alike, the code trains the earlier ones: the first 40 % where the image changes nothing, or where there is none.
Here tokens that depend alike are trained alike, and text is left as it is. The code's ⌈k·n⌉ is one too large for some k and n, as it
is rounded before; here it is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ral.objective.perception.state import OldTokens, PerceptionSettings, k3, on_images, top_tokens

#: Bound on the dependence of a token.
MAX_DEPENDENCE = 10.0


@on_images
def perception_factors(tokens: OldTokens, settings: PerceptionSettings) -> Tensor:
    """`[G, R]`: 0 on tokens outside of the top `perception_top`, else the completion's factor, at least `perception_floor`.

    A completion that depends on its image nowhere has no top: all of its tokens have its factor. Text has 1.
    """
    assert tokens.masked_logps is not None
    dependence = k3(tokens.logps, tokens.masked_logps).clamp(0, MAX_DEPENDENCE)
    dependence = torch.where(tokens.mask, dependence, 0.0)
    chosen = top_tokens(dependence, tokens.mask, settings.perception_top)
    return completion_factors(dependence, tokens.mask, settings.perception_floor)[:, None] * chosen


def completion_factors(dependence: Tensor, mask: Tensor, floor: float) -> Tensor:
    """`[G]`, with mean 1: how much each completion counts by its mean dependence; 1 where all of a group depend alike."""
    means = dependence.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    low, high = means.min(), means.max()
    if not bool(high - low > 1e-6):
        return torch.ones_like(means)
    scaled = (means - low) / (high - low)
    return floor + (1 - floor) * scaled / scaled.mean()
