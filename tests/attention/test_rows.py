"""Attention rows and their gradient against a plain softmax in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ral.attention import rows
from ral.attention.rows import attention_rows, head_mean_attention, policy_rows, renormalise
from ral.attention.sight import EVERYTHING

HEADS, KV_HEADS, G, R, P, D = 4, 2, 3, 5, 7, 6
SCALING = 0.37
MASK = torch.arange(R) < torch.tensor([[5], [2], [4]])


def tensors(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q `[H, G, R, D]`, k_prompt `[H_kv, P, D]`, k_own `[H_kv, G, R, D]`, bias `[G, R, P]`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((HEADS, G, R, D), (KV_HEADS, P, D), (KV_HEADS, G, R, D), (G, R, P))
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)


def plain(q: Tensor, k_prompt: Tensor, k_own: Tensor, query: str, bias: Tensor | None) -> Tensor:
    """The specification, one query at a time: the softmax over what it sees, averaged over heads."""
    out = torch.zeros(G, R, P + R, dtype=q.dtype)
    for g in range(G):
        for r in range(R):
            seen = r + 1 if query == "token" else r
            for head in range(HEADS):
                kv = head // (HEADS // KV_HEADS)
                keys = torch.cat([k_prompt[kv], k_own[kv, g, :seen]])
                scores = keys @ q[head, g, r] * SCALING
                if bias is not None:
                    scores = scores + torch.nn.functional.pad(bias[g, r], (0, seen))
                out[g, r, : P + seen] += scores.softmax(0) / HEADS
    return out


@pytest.fixture(params=[2**24, P + R, HEADS * (P + R) * R], ids=["whole", "by token", "by completion"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("query", ["token", "predictor"])
def test_values_and_gradients_are_those_of_a_plain_softmax(query: str, biased: bool) -> None:
    q, k_prompt, k_own, noise = tensors()
    bias = noise if biased else None
    inputs = [x.requires_grad_() for x in (q, k_prompt, k_own)]
    ours, own = attention_rows(*inputs, MASK, scaling=SCALING, query=query, bias=bias)
    alpha = plain(*inputs, query, bias)
    theirs = policy_rows(alpha, MASK, P)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
    torch.testing.assert_close(own, alpha.detach()[..., P:].diagonal(dim1=1, dim2=2), atol=1e-14, rtol=0)
    assert not own.requires_grad
    torch.testing.assert_close(head_mean_attention(*inputs, scaling=SCALING, query=query, bias=bias), alpha)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-13, rtol=1e-10)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("query", ["token", "predictor"])
def test_gradcheck(query: str) -> None:
    q, k_prompt, k_own, bias = tensors()
    inputs = [
        x[:, :2, :3].clone().requires_grad_() if x.ndim == 4 else x.requires_grad_() for x in (q, k_prompt, k_own)
    ]
    assert torch.autograd.gradcheck(
        lambda *x: attention_rows(*x, MASK[:2, :3], scaling=SCALING, query=query, bias=bias[:2, :3])[0], inputs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_softmax_is_float32_and_gradients_keep_the_inputs_type(dtype: torch.dtype) -> None:
    q, k_prompt, k_own, _ = (x.to(dtype) for x in tensors())
    inputs = [x.requires_grad_() for x in (q, k_prompt, k_own)]
    rows, _ = attention_rows(*inputs, MASK, scaling=SCALING, query="token")
    assert rows.dtype == torch.float32
    exact = policy_rows(plain(*(x.detach().double() for x in inputs), "token", None), MASK, P)
    torch.testing.assert_close(rows.double(), exact, atol=1e-6, rtol=0)  # of these inputs, not of rounded scores
    rows.square().sum().backward()
    assert [x.grad.dtype for x in inputs] == [dtype] * 3


def recorded(kept: list[int], x: Tensor) -> Tensor:
    kept.append(x.numel())
    return x


def test_per_head_weights_exist_one_chunk_at_a_time_and_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """`[H, G, R, P+R]` is never formed, and no chunk of it is held for the backward pass: it is formed again."""
    q, k_prompt, k_own, bias = tensors()
    inputs = [x.requires_grad_() for x in (q, k_prompt, k_own)]
    for bound in (1, 50, 200, 1_000, 5_000, 10**6):
        monkeypatch.setattr(rows, "CHUNK_ELEMENTS", bound)
        formed = []

        def weights(*args: Any, compute=rows._weights, formed=formed) -> Tensor:
            result = compute(*args)
            formed.append(result.numel())
            return result

        kept = []
        with monkeypatch.context() as patch:
            patch.setattr(rows, "_weights", weights)
            with torch.autograd.graph.saved_tensors_hooks(partial(recorded, kept), lambda x: x):
                p, _ = attention_rows(*inputs, MASK, scaling=SCALING, query="token", bias=bias)
            assert max(formed) <= max(bound, HEADS * (P + R))
            assert sum(formed) == HEADS * G * R * (P + R)
            assert max(kept) <= max(x.numel() for x in (*inputs, bias)), "only what the rows are made of is kept"
            p.sum().backward()
            assert sum(formed) == 2 * HEADS * G * R * (P + R)


def test_a_chunk_is_at_most_two_mebibytes_and_not_much_less() -> None:
    """Whole completions where they fit, tokens of one where not. Without numbers: a meta device has shapes alone."""
    for prompt, tokens, completions in ((1000, 16, 40), (9000, 64, 2)):
        q, k_own = (torch.empty(2, *heads, completions, tokens, 8, device="meta") for heads in ((2,), ()))
        k_prompt = torch.empty(2, prompt, 8, device="meta")
        sizes = [weights.numel() for *_, weights in rows._chunks(q, k_prompt, k_own, "token", None, EVERYTHING)]
        assert sum(sizes) == 4 * completions * tokens * (prompt + tokens)
        assert 2**18 < max(sizes) <= 2**19


@pytest.mark.parametrize("query", ["token", "predictor"])
def test_policy_rows_leave_the_token_out_and_sum_to_one(query: str) -> None:
    q, k_prompt, k_own, _ = tensors()
    alpha = head_mean_attention(q, k_prompt, k_own, scaling=SCALING, query=query)
    p = policy_rows(alpha, MASK, P)
    torch.testing.assert_close(p.sum(-1), MASK.double())
    for g in range(G):
        for r in range(int(MASK[g].sum())):
            earlier = alpha[g, r, : P + r]
            torch.testing.assert_close(p[g, r, : P + r], earlier / earlier.sum())
            assert not p[g, r, P + r :].any()
    if query == "predictor":  # its query never saw the token: nothing to leave out
        torch.testing.assert_close(p[MASK], alpha[MASK])


def test_policy_rows_gradcheck() -> None:
    alpha = torch.rand(2, 3, 4 + 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.autograd.gradcheck(lambda x: policy_rows(x, mask, 4), [alpha])
    policy_rows(alpha, mask, 4).square().sum().backward()
    assert not alpha.grad[1, 1:].any(), "padding rows get no gradient"


def test_an_empty_row_stays_zero_with_a_zero_gradient() -> None:
    weights = torch.tensor([[0.0, 0.0], [1.0, 3.0]], requires_grad=True)
    result = renormalise(weights)
    assert result.tolist() == [[0, 0], [0.25, 0.75]]
    result[:, 0].sum().backward()
    assert weights.grad[0].tolist() == [0, 0]
    torch.testing.assert_close(weights.grad[1], torch.tensor([3 / 16, -1 / 16]))


@pytest.mark.parametrize("query", ["token", "predictor"])
def test_a_callers_autocast_changes_neither_rows_nor_gradients(query: str) -> None:
    q, k_prompt, k_own, bias = (x.requires_grad_() for x in tensors(torch.float32))
    upstream = torch.randn(G, R, P + R, generator=torch.Generator().manual_seed(1))

    def found() -> tuple[Tensor, ...]:
        p, own = attention_rows(q, k_prompt, k_own, MASK, scaling=SCALING, query=query, bias=bias.detach())
        gradients = torch.autograd.grad((p * upstream).sum(), [q, k_prompt, k_own])
        return p, own, head_mean_attention(q, k_prompt, k_own, scaling=SCALING, query=query), *gradients

    expected = found()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = q @ k_own.repeat_interleave(2, dim=0).transpose(-1, -2)
        assert rounded.dtype == torch.bfloat16  # what it does to a product
        under_autocast = found()
    for ours, theirs in zip(under_autocast, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_token_that_looks_at_itself_alone_gives_a_finite_gradient() -> None:
    """What it leaves to others is too small to be renormalised: they get nothing, as where there is nothing."""
    q, k_prompt, k_own, _ = (torch.zeros_like(x) for x in tensors(torch.float32))
    k_own[..., 0], q[..., 0] = 100.0, 1.0
    q.requires_grad_()
    for score in (60.0, 92.0, 95.0, 200.0):
        p, _ = attention_rows(q, k_prompt, k_own, MASK, scaling=score / 100, query="token")
        (gradient,) = torch.autograd.grad(p[..., 0].sum(), q)
        assert p.isfinite().all()
        assert gradient.isfinite().all()
        first = p[:, 0].sum(dim=-1)
        torch.testing.assert_close(first, torch.full((G,), float(score == 60)))


@pytest.mark.parametrize("held", [float("nan"), float("inf")])
def test_a_row_without_numbers_that_counts_for_nothing_gets_no_gradient(held: float) -> None:
    weights = torch.tensor([[held, 1.0], [1.0, 3.0]], requires_grad=True)
    result = renormalise(weights)
    assert result[0].isnan().any()  # it is not hidden from those that count it
    (gradient,) = torch.autograd.grad(result, weights, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert gradient[0].tolist() == [0, 0]
    torch.testing.assert_close(gradient[1], torch.tensor([3 / 16, -1 / 16]))
