"""Attention weights of completion tokens, recomputed from query and key in chunks, and the policy rows made of them.

The head-averaged weights α are the only thing kept; the `H × R × (P+R)` tensor of one chunk is formed twice, once in each
direction, and freed. Everything is at least float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

Query = Literal["token", "predictor"]

#: Elements of the per-head weights formed at once (float32: 64 MiB).
CHUNK_ELEMENTS = 2**24


def _blocks(shape: tuple[int, int, int, int]) -> Iterator[tuple[slice, slice]]:
    """Pieces (completions, tokens) of a `[H, G, R, S]` tensor that stay under `CHUNK_ELEMENTS`."""
    heads, completions, tokens, keys = shape
    per_token = heads * keys
    token_step = max(1, min(tokens, CHUNK_ELEMENTS // per_token))
    completion_step = max(1, CHUNK_ELEMENTS // (per_token * tokens)) if token_step == tokens else 1
    for g in range(0, completions, completion_step):
        for r in range(0, tokens, token_step):
            yield slice(g, g + completion_step), slice(r, r + token_step)


class _HeadMean(torch.autograd.Function):
    """α: softmax over [prompt; own completion up to `reach` + r], averaged over heads."""

    @staticmethod
    def _weights(
        q: Tensor,
        k_prompt: Tensor,
        k_own: Tensor,
        bias: Tensor | None,
        scaling: float,
        reach: int,
        first: int,
    ) -> Tensor:
        """Per-head weights `[H_kv, M, g, r, P+R]` of one block whose first token is row `first`."""
        prompt = torch.einsum("kmgrd,kpd->kmgrp", q, k_prompt) * scaling
        if bias is not None:
            prompt = prompt + bias
        own = torch.einsum("kmgrd,kgsd->kmgrs", q, k_own) * scaling
        r, s = own.shape[-2:]
        later = torch.ones(r, s, dtype=torch.bool, device=q.device).triu(first + reach)
        return torch.cat([prompt, own.masked_fill(later, float("-inf"))], dim=-1).softmax(dim=-1)

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k_prompt: Tensor, k_own: Tensor, bias: Tensor | None, scaling: float, reach: int
    ) -> Tensor:
        ctx.save_for_backward(q, k_prompt, k_own, bias)
        ctx.scaling, ctx.reach = scaling, reach
        kv, m, g, r, _ = q.shape
        keys = k_prompt.shape[1] + r
        dtype = torch.promote_types(q.dtype, torch.float32)
        mean = torch.empty(g, r, keys, dtype=dtype, device=q.device)
        k_prompt, k_own = k_prompt.to(dtype), k_own.to(dtype)
        for gs, rs in _blocks((kv * m, g, r, keys)):
            block_bias = None if bias is None else bias[gs, rs]
            weights = _HeadMean._weights(
                q[:, :, gs, rs].to(dtype), k_prompt, k_own[:, gs], block_bias, scaling, reach, rs.start
            )
            mean[gs, rs] = weights.mean(dim=(0, 1))
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k_prompt, k_own, bias = ctx.saved_tensors
        dtype = grad.dtype
        kv, m, g, r, _ = q.shape
        prompt_length = k_prompt.shape[1]
        prompt_f, own_f = k_prompt.to(dtype), k_own.to(dtype)
        dq = torch.empty(q.shape, dtype=dtype, device=q.device)
        dk_prompt, dk_own = torch.zeros_like(prompt_f), torch.zeros_like(own_f)
        for gs, rs in _blocks((kv * m, g, r, prompt_length + r)):
            q_block = q[:, :, gs, rs].to(dtype)
            block_bias = None if bias is None else bias[gs, rs]
            weights = _HeadMean._weights(q_block, prompt_f, own_f[:, gs], block_bias, ctx.scaling, ctx.reach, rs.start)
            upstream = grad[gs, rs] / (kv * m)
            # Softmax backward, in place: ds = α · (dα − Σ α dα) · scaling.
            inner = torch.einsum("kmgrs,grs->kmgr", weights, upstream)
            scores = weights.mul_(upstream - inner[..., None]).mul_(ctx.scaling)
            ds_prompt, ds_own = scores.split([prompt_length, r], dim=-1)
            dq[:, :, gs, rs] = torch.einsum("kmgrp,kpd->kmgrd", ds_prompt, prompt_f)
            dq[:, :, gs, rs] += torch.einsum("kmgrs,kgsd->kmgrd", ds_own, own_f[:, gs])
            dk_prompt += torch.einsum("kmgrp,kmgrd->kpd", ds_prompt, q_block)
            dk_own[:, gs] += torch.einsum("kmgrs,kmgrd->kgsd", ds_own, q_block)
        return dq.to(q.dtype), dk_prompt.to(q.dtype), dk_own.to(q.dtype), None, None, None


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
    kv = k_prompt.shape[0]
    grouped = q.reshape(kv, q.shape[0] // kv, *q.shape[1:])
    return _HeadMean.apply(grouped, k_prompt, k_own, bias, scaling, 1 if query == "token" else 0)


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
