"""The token-side rivals: each against its formula written out, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ral.objective.perception import PERCEPTION
from ral.objective.perception.at_rl import anchor_factors, clusters
from ral.objective.perception.papo import perception_term
from ral.objective.perception.state import OldTokens, k3, top_tokens
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


def test_at_rl_counts_every_completion_as_much_as_before() -> None:
    found = anchor_factors(old(attention=numbers(7, G, R, P + R)), settings(perception_top=0.15, perception_floor=0.2))
    torch.testing.assert_close(found.sum(dim=1), MASK.sum(dim=1).double())
    assert not found[~MASK].any()


@pytest.mark.parametrize(("share", "tokens", "kept"), [
    (0.15, 100, 15), (0.15, 101, 16), (0.3, 50, 15), (0.6, 25, 15), (0.6, 26, 16), (0.4, 4095, 1638), (1.0, 7, 7), (1e-6, 9, 1),
])  # fmt: skip
def test_the_share_is_taken_as_the_decimal_that_it_is(share: float, tokens: int, kept: int) -> None:
    values = numbers(8, 1, tokens).float()
    found = top_tokens(values, torch.ones(1, tokens, dtype=torch.bool), share)
    assert int(found.sum()) == kept
    assert torch.equal(values[found].sort().values, values[0].sort().values[-kept:])


def test_no_place_decides_between_equals() -> None:
    values = torch.tensor([[2.0, 5, 2, 2, 1], [3, 3, 3, 0, 0], [0, 7, 0, 4, 99]])
    found = top_tokens(values, MASK, 0.4)
    assert found.tolist() == [
        [True, True, True, True, False], [True, True, True, False, False], [False, True, False, True, False]
    ]  # fmt: skip
    order = torch.tensor([4, 2, 0, 3, 1])
    again = top_tokens(values[:1, order], MASK[:1], 0.4)
    assert torch.equal(again, found[:1, order])


def test_a_completion_that_depends_on_its_image_nowhere_has_its_factor_on_all_tokens() -> None:
    """Not on the first 40 % of them. The others of its group are as they would be."""
    logps = -numbers(0, G, R) * MASK
    masked = -3 * numbers(4, G, R) * MASK
    masked[1] = logps[1]
    found = perception_factors(old(masked_logps=masked), settings())
    assert found[1].tolist() == [0.9, 0.9, 0.9, 0, 0]
    assert (found[0] > 0).sum() == (found[2] > 0).sum() == 2
    assert torch.equal(perception_factors(old(masked_logps=logps), settings()), MASK.double())


def test_small_dependences_keep_their_order_in_float32() -> None:
    """Gaps of 1e-5 and less: k3 is half of their square. e^gap − gap − 1 would be 0 or one rounding for all of them."""
    gaps = torch.tensor([[1e-5, -4e-5, 2e-5, 0.0, -3e-5]])
    torch.testing.assert_close(k3(torch.zeros(1, 5), gaps), gaps.square() / 2, rtol=1e-2, atol=0)
    tokens = OldTokens(torch.zeros(1, 5), gaps, None, VISUAL, torch.ones(1, 5, dtype=torch.bool))
    assert perception_factors(tokens, settings()).bool().tolist() == [[False, True, False, False, True]]


@pytest.mark.parametrize("name", ["vppo", "at_rl"])
@pytest.mark.parametrize("off", [0.0, 1e-6])
def test_factors_leave_text_alone(name: str, off: float) -> None:
    """Also where another layout of the batch moved the log-probabilities of the second pass by a rounding."""
    factors = PERCEPTION[name].factors
    assert factors is not None
    tokens = old(visual=torch.zeros(P, dtype=torch.bool), attention=numbers(6, G, R, P + R))
    tokens = replace(tokens, masked_logps=tokens.logps + off * numbers(9, G, R))
    assert torch.equal(factors(tokens, settings()), MASK.double())


def test_at_rl_counts_a_completion_as_it_is_that_looks_at_no_visual_token() -> None:
    attention = numbers(7, G, R, P + R)
    expected = anchor_factors(old(attention=attention), settings(perception_top=0.15, perception_floor=0.2))
    attention[1, :, :P][:, VISUAL] = 0
    found = anchor_factors(old(attention=attention), settings(perception_top=0.15, perception_floor=0.2))
    assert torch.equal(found[1], MASK[1].double())
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    attention[..., :P][..., VISUAL] = 0
    assert torch.equal(anchor_factors(old(attention=attention), settings()), MASK.double())
