"""Policy rows of completion tokens, recomputed from query and key in chunks, with a backward of their own.

Only the rows are kept: the `H × R × (P+R)` weights of the heads and everything between them and the rows exist one chunk at
a time, in either direction. All of it is at least float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Query = Literal["token", "predictor"]

#: Elements of the per-head weights formed at once (float32: 2 MiB, which stays in a CPU's cache).
CHUNK_ELEMENTS = 2**19


def attention_rows(
    q: Tensor,
    k_prompt: Tensor,
    k_own: Tensor,
    mask: Tensor,
    *,
    scaling: float,
    query: Query,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Policy rows of the completion tokens of one group, of their attention's mean over heads α (see `policy_rows`).

    Args:
        q: `[H, G, R, D]` post-RoPE queries, one per completion token.
        k_prompt: `[H_kv, P, D]`, k_own: `[H_kv, G, R, D]` post-RoPE keys; H is a multiple of H_kv.
        mask: `[G, R]`, true on real tokens.
        scaling: factor on the scores (1/√D as a rule).
        query: `"token"`: the query is the token itself and also attends to itself; `"predictor"`: the query is the
            position before it, which does not see the token.
        bias: `[G, R, P]` added to the scores of the prompt keys, or None.

    Returns:
        p `[G, R, P+R]`, differentiable in q and both k: zero at the token itself, after it and on padding, other rows sum to 1.
        α_tt `[G, R]`, detached: what each token gives to itself, which p leaves out.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    kv = k_prompt.shape[0]
    q = (q.to(dtype) * scaling).reshape(kv, q.shape[0] // kv, *q.shape[1:])
    return _Rows.apply(q, k_prompt.to(dtype), k_own.to(dtype), mask, query, bias)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """`_chunk_rows` chunk by chunk: the backward pass computes each chunk again instead of keeping what it computed."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k_prompt: Tensor, k_own: Tensor, mask: Tensor, query: Query, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k_prompt, k_own, mask, bias)
        ctx.query = query
        rows = q.new_empty(*mask.shape, k_prompt.shape[1] + k_own.shape[2])
        own = q.new_empty(mask.shape)
        for at in _chunks(*rows.shape, heads=q.shape[0] * q.shape[1]):
            rows[at], own[at] = _chunk_rows(q[:, :, *at], k_prompt, k_own[:, at[0]], mask, at, query, bias)
        ctx.mark_non_differentiable(own)
        return rows, own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k_prompt, k_own, mask, bias = ctx.saved_tensors
        grad_q, grad_prompt, grad_own = (torch.zeros_like(x) for x in (q, k_prompt, k_own))
        for at in _chunks(*grad_rows.shape, heads=q.shape[0] * q.shape[1]):
            inputs = [x.detach().requires_grad_() for x in (q[:, :, *at], k_prompt, k_own[:, at[0]])]
            with torch.enable_grad():
                rows, _ = _chunk_rows(inputs[0], inputs[1], inputs[2], mask, at, ctx.query, bias)
            grads = torch.autograd.grad(rows, inputs, grad_rows[at])
            for total, part in zip((grad_q[:, :, *at], grad_prompt, grad_own[:, at[0]]), grads, strict=True):
                total += part
        return grad_q, grad_prompt, grad_own, None, None, None


def head_mean_attention(
    q: Tensor, k_prompt: Tensor, k_own: Tensor, *, scaling: float, query: Query, bias: Tensor | None = None
) -> Tensor:
    """The mean over heads α `[G, R, P+R]` whose policy rows `attention_rows` gives, in one piece; rows sum to 1.

    Rows of padding tokens are meaningless. Arguments as there.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    heads, kv = q.shape[0], k_prompt.shape[0]
    q = (q.to(dtype) * scaling).reshape(kv, heads // kv, *q.shape[1:])
    reach = _reach(k_own.shape[2], query, q.device)
    return _head_mean(q, k_prompt.to(dtype), k_own.to(dtype), reach, bias)


def _chunks(completions: int, tokens: int, keys: int, *, heads: int) -> Iterator[tuple[slice, slice]]:
    """As many whole completions as fit into a chunk; where not even one fits, tokens of one."""
    r = max(1, min(tokens, CHUNK_ELEMENTS // (heads * keys)))
    g = max(1, CHUNK_ELEMENTS // (heads * keys * tokens))
    for i in range(0, completions, g):
        for j in range(0, tokens, r):
            yield slice(i, i + g), slice(j, j + r)


def _chunk_rows(
    q: Tensor,
    k_prompt: Tensor,
    k_own: Tensor,
    mask: Tensor,
    at: tuple[slice, slice],
    query: Query,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """p `[g, r, P+R]` and α_tt `[g, r]` of the chunk `at`, from its q `[H_kv, H/H_kv, g, r, D]` and k_own."""
    reach = _reach(k_own.shape[2], query, q.device)
    alpha = _head_mean(q, k_prompt, k_own, reach[at[1]], None if bias is None else bias[at])
    prompt, first = k_prompt.shape[1], at[1].start
    own = alpha.detach()[..., prompt + first :].diagonal(dim1=1, dim2=2)
    return policy_rows(alpha, mask[at], prompt, first), own


def _reach(tokens: int, query: Query, device: torch.device) -> Tensor:
    """`[R, R]` bool: which tokens of its completion each query sees."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril(0 if query == "token" else -1)


def _head_mean(q: Tensor, k_prompt: Tensor, k_own: Tensor, reach: Tensor, bias: Tensor | None) -> Tensor:
    """α `[g, r, P+R]`: scaled q `[H_kv, H/H_kv, g, r, D]`, reach `[r, R]` bool, bias `[g, r, P]`."""
    prompt = torch.einsum("kmgrd,kpd->kmgrp", q, k_prompt)
    if bias is not None:
        prompt = prompt + bias
    own = torch.einsum("kmgrd,kgsd->kmgrs", q, k_own).masked_fill(~reach, float("-inf"))
    return torch.cat([prompt, own], dim=-1).softmax(dim=-1).mean(dim=(0, 1))


def policy_rows(alpha: Tensor, mask: Tensor, prompt_length: int, first: int = 0) -> Tensor:
    """p^t from α: the token itself is left out and the rest renormalised (method: p^t(i) = α_ti / Σ_{j<t} α_tj).

    Args:
        alpha: `[G, R, P+R]` attention weights of tokens `first` … `first + R − 1`; mask: `[G, R]`, true on real tokens.

    Returns:
        `[G, R, P+R]`: zero at the token itself and on padding rows; other rows sum to 1.
    """
    itself = torch.zeros(alpha.shape[1:], dtype=torch.bool, device=alpha.device)
    itself[:, prompt_length + first :].fill_diagonal_(True)
    return renormalise(alpha.masked_fill(itself | ~mask[..., None], 0.0))


def renormalise(weights: Tensor) -> Tensor:
    """Rows scaled to sum to 1 over the last dimension; rows without any mass stay zero, with a zero gradient."""
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(total > 0, total, float("inf"))
