"""AT-RL (arXiv 2602.11455): advantages are weighted by how strongly tokens are tied to the image in the graph of attention.

Known from the paper's summary: about 15 % of tokens are *anchors* with strong visual-textual coupling; tokens are clustered by the
topology of attention; a token's advantage is W(C)·A with a weight of its cluster C. Not known, and assumed here: the coupling of a
token is its attention on visual tokens (mean over heads and the trained layers, of the policy at sampling); the anchors are the
top share of a completion; every other token belongs to the earlier anchor that it attends to most (the first of several alike), and
to the next anchor where there is none before it; W is the mean coupling of the cluster, at least `perception_floor` of the largest,
with mean 1 over a completion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ral.objective.perception.state import OldTokens, PerceptionSettings, on_images, top_tokens


@on_images
def anchor_factors(tokens: OldTokens, settings: PerceptionSettings) -> Tensor:
    """`[G, R]`: W(C) of the cluster of every token; 1 for text, and in a completion that looks at no visual token; 0 on padding."""
    assert tokens.attention is not None
    prompt = len(tokens.visual)
    coupling = tokens.attention[..., :prompt][..., tokens.visual].sum(dim=-1)
    anchors = top_tokens(coupling, tokens.mask, settings.perception_top)
    cluster = clusters(tokens.attention[..., prompt:], anchors)
    weights = _cluster_means(coupling, cluster, tokens.mask)
    largest = weights.amax(dim=1, keepdim=True)
    weights = torch.where(tokens.mask, weights.clamp_min(settings.perception_floor * largest), 0.0)
    total = weights.sum(dim=1, keepdim=True)
    scaled = weights * tokens.mask.sum(dim=1, keepdim=True) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, scaled, tokens.mask.to(weights.dtype))


def clusters(attention: Tensor, anchors: Tensor) -> Tensor:
    """`[G, R]` long, the place of the anchor that each token belongs to.

    Args:
        attention: `[G, R, R]` of tokens to tokens. anchors: `[G, R]` bool, at least one in each completion.
    """
    place = torch.arange(anchors.shape[1], device=anchors.device)
    earlier = anchors[:, None, :] & (place[None, :] < place[:, None])
    nearest = torch.where(earlier, attention, -1.0).argmax(dim=-1)
    first = anchors.float().argmax(dim=1, keepdim=True)
    follows = torch.where(earlier.any(dim=-1), nearest, first)
    return torch.where(anchors, place.expand_as(follows), follows)


def _cluster_means(values: Tensor, cluster: Tensor, mask: Tensor) -> Tensor:
    """`[G, R]`: the mean value of the tokens in each token's cluster."""
    real = mask.to(values.dtype)
    total = torch.zeros_like(values).scatter_add_(1, cluster, values * real)
    count = torch.zeros_like(values).scatter_add_(1, cluster, real)
    return (total / count.clamp(min=1)).gather(1, cluster)
