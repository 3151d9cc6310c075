"""Attention weights of completion tokens, recomputed from query and key in chunks, and the policy rows made of them.

Only the head-averaged weights α are kept: the `H × R × (P+R)` tensor exists one chunk at a time, in either direction.
Everything is at least float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Query = Literal["token", "predictor"]

#: Elements of the per-head weights formed at once (float32: 2 MiB, which stays in a CPU's cache).
CHUNK_ELEMENTS = 2**19


def head_mean_attention(
    q: Tensor, k_prompt: Tensor, k_own: Tensor, *, scaling: float, query: Query, bias: Tensor | None = None
) -> Tensor:
    """Head-averaged attention weights of the completion tokens of one group.

    Args:
        q: `[H, G, R, D]` post-RoPE queries, one per completion token.
        k_prompt: `[H_kv, P, D]`, k_own: `[H_kv, G, R, D]` post-RoPE keys; H is a multiple of H_kv.
        scaling: factor on the scores (1/√D as a rule).
        query: `"token"`: the query is the token itself and also attends to itself; `"predictor"`: the query is the
            position before it, which does not see the token.
        bias: `[G, R, P]` added to the scores of the prompt keys, or None.

    Returns:
        α `[G, R, P+R]`, rows sum to 1, differentiable in q and both k. Rows of padding tokens are meaningless.
    """
    heads, completions, tokens, _ = q.shape
    kv, keys = k_prompt.shape[0], k_prompt.shape[1] + tokens
    dtype = torch.promote_types(q.dtype, torch.float32)
    q = (q.to(dtype) * scaling).reshape(kv, heads // kv, *q.shape[1:])
    k_prompt, k_own = k_prompt.to(dtype), k_own.to(dtype)
    reach = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril(0 if query == "token" else -1)

    # As many whole completions as fit into a chunk; where not even one fits, tokens of one.
    r = max(1, min(tokens, CHUNK_ELEMENTS // (heads * keys)))
    g = max(1, CHUNK_ELEMENTS // (heads * keys * tokens))
    parts = []
    # `split` rather than slices: its backward is one concatenation instead of a zero-filled tensor per piece.
    for i, (q_g, own_g) in enumerate(zip(q.split(g, dim=2), k_own.split(g, dim=1), strict=True)):
        for j, q_gr in enumerate(q_g.split(r, dim=3)):
            at = slice(i * g, (i + 1) * g), slice(j * r, (j + 1) * r)
            block = q_gr, k_prompt, own_g, reach[at[1]], None if bias is None else bias[at]
            alpha = checkpoint(_head_mean, *block, use_reentrant=False, preserve_rng_state=False)
            parts.append(alpha.flatten(0, 1))
    return torch.cat(parts).view(completions, tokens, keys)


def _head_mean(q: Tensor, k_prompt: Tensor, k_own: Tensor, reach: Tensor, bias: Tensor | None) -> Tensor:
    """α `[g, r, P+R]` of one chunk: scaled q `[H_kv, H/H_kv, g, r, D]`, reach `[r, R]` bool, bias `[g, r, P]`."""
    prompt = torch.einsum("kmgrd,kpd->kmgrp", q, k_prompt)
    if bias is not None:
        prompt = prompt + bias
    own = torch.einsum("kmgrd,kgsd->kmgrs", q, k_own).masked_fill(~reach, float("-inf"))
    return torch.cat([prompt, own], dim=-1).softmax(dim=-1).mean(dim=(0, 1))


def policy_rows(alpha: Tensor, mask: Tensor, prompt_length: int) -> Tensor:
    """p^t from α: the token itself is left out and the rest renormalised (method: p^t(i) = α_ti / Σ_{j<t} α_tj).

    Args:
        alpha: `[G, R, P+R]` from `head_mean_attention`; mask: `[G, R]`, true on real tokens.

    Returns:
        `[G, R, P+R]`: zero at the token itself, after it and on padding rows; other rows sum to 1.
    """
    tokens = alpha.shape[1]
    itself = torch.zeros(tokens, alpha.shape[2], dtype=torch.bool, device=alpha.device)
    itself[:, prompt_length:].fill_diagonal_(True)
    return renormalise(alpha.masked_fill(itself | ~mask[..., None], 0.0))


def renormalise(weights: Tensor) -> Tensor:
    """Rows scaled to sum to 1 over the last dimension; rows without any mass stay zero, with a zero gradient."""
    total = weights.sum(dim=-1, keepdim=True)
    empty = total <= 0
    return torch.where(empty, 0.0, weights / torch.where(empty, 1.0, total))
