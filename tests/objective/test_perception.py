"""The token-side rivals: each against its formula written out, and what it leaves alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ral.objective.perception.at_rl import anchor_factors, clusters
from ral.objective.perception.papo import perception_term
from ral.objective.perception.state import OldTokens, top_tokens
from ral.objective.perception.vppo import completion_factors, perception_factors
from ral.objective.terms import grpo_loss

G, R, P = 3, 5, 4
MASK = torch.arange(R) < torch.tensor([[5], [3], [4]])
VISUAL = torch.tensor([False, True, True, False])


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def old(**changes: object) -> OldTokens:
    logps = -numbers(0, G, R) * MASK
    return OldTokens(
        **{"logps": logps, "masked_logps": None, "attention": None, "visual": VISUAL, "mask": MASK} | changes
    )  # type: ignore[arg-type]


def settings(**values: float) -> SimpleNamespace:
    return SimpleNamespace(
        **{"perception_coef": 0.01, "perception_entropy_coef": 0.03, "perception_top": 0.4, "perception_floor": 0.9}
        | values
    )


def test_papo_flees_the_answer_under_a_masked_image() -> None:
    """∂/∂ln π of −γ·(m/π − ln m/π − 1) − η·ln π is −γ·(1 − m/π) − η."""
    logps, masked, weights = -numbers(1, G, R), -numbers(2, G, R), numbers(3, G, R) * MASK
    logps.requires_grad_()
    term = perception_term(logps, masked, weights, settings(perception_coef=0.2))
    (found,) = torch.autograd.grad(term.loss, logps)
    ratio = (masked - logps.detach()).exp()
    torch.testing.assert_close(found, weights * (-0.2 * (1 - ratio) - 0.03))
    kl = term.metrics["perception/kl"]
    torch.testing.assert_close(kl.total / kl.weight, (ratio - ratio.log() - 1)[MASK].mean())


def test_papo_stops_pushing_where_the_kl_is_past_its_bound() -> None:
    logps = torch.tensor([[-20.0, -1.0]], requires_grad=True)
    term = perception_term(logps, torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2), settings(perception_entropy_coef=0.0))
    assert not torch.autograd.grad(term.loss, logps)[0].any()  # far beyond, and exactly equal
    assert float(term.loss) == pytest.approx(-0.01 * 10)


def test_top_tokens_are_a_share_of_each_completion_rounded_up() -> None:
    values = torch.tensor([[1.0, 5, 3, 4, 2], [9, 8, 7, 0, 0], [1, 2, 3, 4, 99]])
    found = top_tokens(values, MASK, 0.4)
    assert found.tolist() == [
        [False, True, False, True, False], [True, True, False, False, False], [False, False, True, True, False]
    ]  # fmt: skip
    assert torch.equal(top_tokens(values, MASK, 1.0), MASK)


def test_vppo_trains_dependent_tokens_and_prefers_dependent_completions() -> None:
    tokens = old(masked_logps=-3 * numbers(4, G, R) * MASK)
    gap = tokens.masked_logps - tokens.logps
    dependence = (gap.exp() - gap - 1) * MASK
    means = torch.stack([row[: int(mask.sum())].mean() for row, mask in zip(dependence, MASK, strict=True)])
    scaled = (means - means.min()) / (means.max() - means.min())
    highest = 0.9 + 0.1 / scaled.mean()
    factor = 0.9 + scaled * (highest - 0.9)
    found = perception_factors(tokens, settings())
    for row, mine, each, mask in zip(found, factor, dependence, MASK, strict=True):
        length = int(mask.sum())
        best = each[:length].topk(-(-length * 2 // 5)).indices
        expected = torch.zeros(R, dtype=torch.float64)
        expected[best] = mine
        torch.testing.assert_close(row, expected)
    assert float(factor.mean()) == pytest.approx(1)
    assert float(factor.min()) == pytest.approx(0.9)


def test_a_group_that_depends_alike_is_scaled_by_one() -> None:
    assert completion_factors(torch.ones(G, R), MASK | True, 0.9).tolist() == [1.0] * G


def test_factors_are_factors_on_the_advantage() -> None:
    """The loss with factors is that of token-wise advantages; the KL does not feel them."""
    logps, previous, reference = (-numbers(seed, G, R) for seed in (1, 2, 3))
    advantages, factors = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64), numbers(5, G, R)
    weights = MASK.double() / MASK.sum()
    term = grpo_loss(logps, previous, advantages, weights, epsilon=0.2, factors=factors, ref_logps=reference, beta=0.1)
    ratio, each = (logps - previous).exp(), advantages[:, None] * factors
    gap = reference - logps
    by_hand = -torch.min(ratio * each, ratio.clamp(0.8, 1.2) * each) + 0.1 * (gap.exp() - gap - 1)
    torch.testing.assert_close(term.loss, (by_hand * weights).sum())


def test_at_rl_weighs_a_token_by_the_coupling_of_its_cluster() -> None:
    attention = torch.zeros(1, 5, P + 5, dtype=torch.float64)
    attention[0, :, 1] = torch.tensor([0.1, 0.8, 0.0, 0.6, 0.2])  # coupling: on a visual token
    attention[0, 2, P + 1] = 0.5  # the third looks at the second, an anchor
    attention[0, 4, P + 1], attention[0, 4, P + 3] = 0.1, 0.4  # the fifth at the fourth, the other anchor
    mask = torch.ones(1, 5, dtype=torch.bool)
    anchors = torch.tensor([[False, True, False, True, False]])
    assert clusters(attention[..., P:], anchors).tolist() == [[1, 1, 1, 3, 3]]
    tokens = OldTokens(torch.zeros(1, 5, dtype=torch.float64), None, attention, VISUAL, mask)
    found = anchor_factors(tokens, settings(perception_top=0.4, perception_floor=0.1))
    means = torch.tensor([0.3, 0.3, 0.3, 0.4, 0.4], dtype=torch.float64)
    torch.testing.assert_close(found[0], means / means.mean())
    even = anchor_factors(tokens, settings(perception_top=0.4, perception_floor=1.0))
    torch.testing.assert_close(even, mask.double())


def test_at_rl_leaves_text_alone() -> None:
    tokens = old(visual=torch.zeros(P, dtype=torch.bool), attention=numbers(6, G, R, P + R))
    assert torch.equal(anchor_factors(tokens, settings()), MASK.double())


def test_at_rl_counts_every_completion_as_much_as_before() -> None:
    found = anchor_factors(old(attention=numbers(7, G, R, P + R)), settings(perception_top=0.15, perception_floor=0.2))
    torch.testing.assert_close(found.sum(dim=1), MASK.sum(dim=1).double())
    assert not found[~MASK].any()
