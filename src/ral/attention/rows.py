"""Policy rows of completion tokens, recomputed from query and key in chunks, with their own backward pass.

Only the rows are stored. The `H × R × (P+R)` weights of the heads, and all other intermediate values, exist for one chunk at a
time, in the forward and the backward pass. Everything is at least float32, also under a caller's autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ral.attention.sight import EVERYTHING, Sight

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
    sight: Sight = EVERYTHING,
) -> tuple[Tensor, Tensor]:
    """Compute the policy rows of one group's completion tokens from their head-averaged attention α (see `policy_rows`).

    Args:
        q: `[H, G, R, D]` post-RoPE queries, one per completion token.
        k_prompt: `[H_kv, P, D]`, k_own: `[H_kv, G, R, D]` post-RoPE keys; H is a multiple of H_kv.
        mask: `[G, R]`, true on real tokens.
        scaling: factor on the scores (1/√D as a rule).
        query: `"token"`: the query is the token itself and also attends to itself; `"predictor"`: the query is the
            position before it, which does not see the token.
        bias: `[G, R, P]` added to the scores of the prompt keys, or None.
        sight: how far back the queries see.

    Returns:
        p `[G, R, P+R]`, differentiable in q and both k: zero at the token itself, after it and on padding, other rows sum to 1.
        α_tt `[G, R]`, detached: what each token gives to itself, which p leaves out.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    kv = k_prompt.shape[0]
    q = (q.to(dtype) * scaling).reshape(kv, q.shape[0] // kv, *q.shape[1:])
    return _Rows.apply(q, k_prompt.to(dtype), k_own.to(dtype), mask, query, bias, sight)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """p and α_tt, chunk by chunk; the backward pass forms the weights of a chunk again instead of keeping them.

    With the weights a^h of head h, α = Σ_h a^h / H and p = α / S, S = Σα without the token itself, an upstream gradient u gives
    v = ∂/∂α = (u − ⟨u, p⟩) / S, 0 at the token itself, and ∂/∂scores^h = a^h · (v − ⟨v, a^h⟩) / H.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k_prompt: Tensor,
        k_own: Tensor,
        mask: Tensor,
        query: Query,
        bias: Tensor | None,
        sight: Sight,
    ) -> tuple[Tensor, Tensor]:
        prompt = k_prompt.shape[1]
        rows = q.new_empty(*mask.shape, prompt + k_own.shape[2])
        own, mass = q.new_empty(mask.shape), q.new_empty(*mask.shape, 1)
        with _no_autocast(q):
            for at, _, weights in _chunks(q, k_prompt, k_own, query, bias, sight):
                alpha = weights.mean(dim=(0, 2))
                own[at] = _itself(alpha, prompt, at[1].start)
                alpha = _without_itself(alpha, mask[at], prompt, at[1].start)
                mass[at] = _mass(alpha)
                rows[at] = alpha / mass[at]
        ctx.save_for_backward(q, k_prompt, k_own, bias, rows, mass)
        ctx.query, ctx.sight = query, sight
        ctx.mark_non_differentiable(own)
        return rows, own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k_prompt, k_own, bias, rows, mass = ctx.saved_tensors
        heads, prompt = q.shape[0] * q.shape[1], k_prompt.shape[1]
        grad_q, grad_prompt, grad_own = (torch.zeros_like(x) for x in (q, k_prompt, k_own))
        with _no_autocast(q):
            for at, keys, weights in _chunks(q, k_prompt, k_own, ctx.query, bias, ctx.sight):
                u = upstream[at]
                v = (u - (u * rows[at]).sum(dim=-1, keepdim=True)) / (heads * mass[at])
                _itself(v, prompt, at[1].start).zero_()
                scores = weights * v[:, None]
                scores.addcmul_(weights, scores.sum(dim=-1, keepdim=True), value=-1)
                grad_q[:, :, *at] = torch.einsum("kgmrs,kgsd->kmgrd", scores, keys)
                grad_keys = torch.einsum("kgmrs,kmgrd->kgsd", scores, q[:, :, *at])
                grad_prompt += grad_keys[:, :, :prompt].sum(dim=1)
                grad_own[:, at[0]] += grad_keys[:, :, prompt:]
        return grad_q, grad_prompt, grad_own, None, None, None, None


def head_mean_attention(
    q: Tensor,
    k_prompt: Tensor,
    k_own: Tensor,
    *,
    scaling: float,
    query: Query,
    bias: Tensor | None = None,
    sight: Sight = EVERYTHING,
) -> Tensor:
    """The mean over heads α `[G, R, P+R]` whose policy rows `attention_rows` gives, in one piece; rows sum to 1.

    Rows of padding tokens are meaningless. Arguments as there.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    heads, kv = q.shape[0], k_prompt.shape[0]
    q = (q.to(dtype) * scaling).reshape(kv, heads // kv, *q.shape[1:])
    keys = _keys(k_prompt.to(dtype), k_own.to(dtype))
    with _no_autocast(q):
        return _weights(q, keys, k_prompt.shape[1], 0, query, bias, sight).mean(dim=(0, 2))


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Products in the precision of their factors: autocast would round them to 16 bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def _chunks(
    q: Tensor, k_prompt: Tensor, k_own: Tensor, query: Query, bias: Tensor | None, sight: Sight
) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
    """Where each chunk stands among completions and tokens, the keys `[H_kv, g, P+R, D]` of its completions, its `_weights`.

    As many whole completions as fit into a chunk; where not even one fits, tokens of one.
    """
    completions, tokens = k_own.shape[1:3]
    prompt = k_prompt.shape[1]
    width = q.shape[0] * q.shape[1] * (prompt + tokens)
    r = max(1, min(tokens, CHUNK_ELEMENTS // width))
    g = max(1, CHUNK_ELEMENTS // (width * tokens))
    for i in range(0, completions, g):
        keys = _keys(k_prompt, k_own[:, i : i + g])
        for j in range(0, tokens, r):
            at = slice(i, i + g), slice(j, j + r)
            yield at, keys, _weights(q[:, :, *at], keys, prompt, j, query, None if bias is None else bias[at], sight)


def _keys(k_prompt: Tensor, k_own: Tensor) -> Tensor:
    """`[H_kv, g, P+R, D]`. Copying keys is cheaper than putting scores together, which are more by H·R / H_kv·D."""
    return torch.cat([k_prompt[:, None].expand(-1, k_own.shape[1], -1, -1), k_own], dim=2)


def _weights(
    q: Tensor, keys: Tensor, prompt: int, first: int, query: Query, bias: Tensor | None, sight: Sight
) -> Tensor:
    """Attention `[H_kv, g, H/H_kv, r, P+R]` of every head.

    Args:
        q: scaled `[H_kv, H/H_kv, g, r, D]` of tokens `first` … `first + r − 1`. keys: `[H_kv, g, P+R, D]`. bias: `[g, r, P]`.
    """
    scores = torch.einsum("kmgrd,kgsd->kgmrs", q, keys)
    if bias is not None:
        scores[..., :prompt] += bias[:, None]
    unseen = torch.ones(q.shape[3], keys.shape[2] - prompt, dtype=torch.bool, device=q.device)
    scores[..., prompt:].masked_fill_(unseen.triu(first + (query == "token")), float("-inf"))
    if not sight.reaches(keys.shape[2]):
        place = torch.arange(q.shape[3], device=q.device) + (prompt + first - (query == "predictor"))
        scores.masked_fill_(sight.hides(place[:, None], torch.arange(keys.shape[2], device=q.device)), float("-inf"))
    return scores.softmax(dim=-1)


def _itself(rows: Tensor, prompt: int, first: int) -> Tensor:
    """The entries `[G, R]` of `[G, R, P+R]` at which each of the tokens from `first` on stands itself, as a view."""
    return rows[..., prompt + first :].diagonal(dim1=1, dim2=2)


def policy_rows(alpha: Tensor, mask: Tensor, prompt_length: int) -> Tensor:
    """p^t from α: the token itself is left out and the rest renormalised (method: p^t(i) = α_ti / Σ_{j<t} α_tj).

    Args:
        alpha: `[G, R, P+R]` attention weights; mask: `[G, R]`, true on real tokens.

    Returns:
        `[G, R, P+R]`: zero at the token itself and on padding rows; other rows sum to 1.
    """
    return renormalise(_without_itself(alpha, mask, prompt_length, 0))


def renormalise(weights: Tensor) -> Tensor:
    """Rows scaled to sum to 1 over the last dimension; rows without any mass stay zero, with a zero gradient."""
    return weights / _mass(weights)


def _without_itself(alpha: Tensor, mask: Tensor, prompt: int, first: int) -> Tensor:
    """α of tokens `first` and on with zeros at the tokens themselves and in rows of padding."""
    kept = alpha.masked_fill(~mask[..., None], 0.0)
    _itself(kept, prompt, first).zero_()
    return kept


def _mass(weights: Tensor) -> Tensor:
    """Sums `[..., 1]` over the last dimension, by which rows are divided: infinite if there is almost nothing, or no number.

    What is nearly as small as numbers get has no digits left to renormalise, and its inverse would overflow in a gradient. A row
    that holds no numbers stays one, but where it counts for nothing its gradient is 0.
    """
    total = weights.sum(dim=-1, keepdim=True)
    usable = (total > torch.finfo(total.dtype).tiny * 2**24) & total.isfinite()
    return torch.where(usable, total, float("inf"))
