"""What each anchor trains, and when it trains nothing: the traps of attention terms as numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from ral.objective.anchors import ANCHORS, AttentionState
from ral.objective.divergence import jensen_shannon
from ral.objective.terms import StepTotals, attention_loss, group_advantages, token_weights

G, R, P = 4, 3, 6
LENGTHS = torch.tensor([3, 2, 3, 1])
MASK = torch.arange(R) < LENGTHS[:, None]
ADVANTAGES = group_advantages(torch.tensor([1.0, 0.0, 1.0, 0.0])).double()
ANSWER = LENGTHS[:, None] - 1 == torch.arange(R)  # of every completion its last token
EVIDENCE = torch.tensor([False, True, True, False, False, False])
WEIGHTS = token_weights(MASK, StepTotals(G, int(LENGTHS.sum())), "grpo", R).double()


def scores(seed: int = 0) -> Tensor:
    """Attention scores `[G, R, P+R]` that see the prompt and the completion's earlier tokens."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(G, R, P + R, generator=generator, dtype=torch.float64)
    own = torch.arange(R)
    return noise.masked_fill(torch.cat([torch.zeros(R, P).bool(), own[None] >= own[:, None]], dim=1), float("-inf"))


def rows_of(scores: Tensor) -> Tensor:
    return scores.softmax(-1) * MASK[..., None]


def state(rows: Tensor, old: Tensor | None = None, target: Tensor | None = None, **changes: object) -> AttentionState:
    old = rows.detach().clone() if old is None else old
    return dataclasses.replace(AttentionState(rows, old, target, ADVANTAGES, WEIGHTS, P, EVIDENCE, ANSWER), **changes)


def gradient(anchor: str, logits: Tensor, **parts: object) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient with respect to the attention scores."""
    logits = logits.clone().requires_grad_()
    loss = ANCHORS[anchor].term(state(rows_of(logits), **parts)).loss
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def test_trap_1_old_is_exactly_zero_while_the_policy_has_not_moved() -> None:
    for dtype in (torch.float64, torch.float32):
        rows = rows_of(scores()).to(dtype).requires_grad_()
        loss = ANCHORS["old"].term(state(rows)).loss
        assert loss == 0
        assert not torch.autograd.grad(loss, rows)[0].any()
    assert [name for name, anchor in ANCHORS.items() if anchor.needs_inner_updates] == ["old"]


def test_trap_2_old_is_second_order_in_the_update() -> None:
    """A step ten times as large gives a loss a hundred and a gradient ten times as large."""
    start, direction = scores(), torch.nan_to_num(scores(1), neginf=0)
    old = rows_of(start)
    losses, gradients = zip(*(gradient("old", start + step * direction, old=old) for step in (1e-3, 1e-2)), strict=True)
    assert losses[1] / losses[0] == pytest.approx(100, rel=0.1)
    assert gradients[1].norm() / gradients[0].norm() == pytest.approx(10, rel=0.1)


def test_trap_3_terms_of_a_shared_context_cancel_exactly() -> None:
    """A first completion token has the same row in every rollout, and Σ A = 0: all pulls and pushes add up to nothing."""
    logits = torch.randn(1, 1, P, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = logits.softmax(-1).expand(G, 1, P)
    target = torch.rand(1, 1, P, dtype=torch.float64).softmax(-1).expand(G, 1, P)
    weights = torch.full((G, 1), 1 / G, dtype=torch.float64)
    for anchor, parts in (("old", {"old": target}), ("ref", {"target": target})):
        loss = ANCHORS[anchor].term(state(rows, weights=weights, **parts)).loss
        [whole] = torch.autograd.grad(loss, logits, retain_graph=True)
        assert loss.abs() < 1e-9
        assert whole.norm() < 1e-9
        for g in range(G):
            single = attention_loss(rows[g : g + 1], target[g : g + 1], ADVANTAGES[g : g + 1], weights[g : g + 1]).loss
            [alone] = torch.autograd.grad(single, logits, retain_graph=True)
            assert alone.norm() > 1e-3


def test_explore_does_not_cancel_on_a_shared_context() -> None:
    """Every rollout was sampled under its own bias, so the targets of one context differ between rollouts."""
    logits = torch.randn(1, 1, P, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bias = 0.5 * torch.randn(G, 1, P, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = logits.softmax(-1).expand(G, 1, P)
    target = (logits.detach() + bias).softmax(-1)
    weights = torch.full((G, 1), 1 / G, dtype=torch.float64)
    loss = ANCHORS["explore"].term(state(rows, target=target, weights=weights)).loss
    [whole] = torch.autograd.grad(loss, logits)
    assert whole.norm() > 1e-3
    # To first order the step is along Σ A_g η_g, as if all rollouts were one of that bias.
    estimate = along(logits.detach()[0, 0], -(ADVANTAGES[:, None] * bias[:, 0]).mean(0) / 4)
    assert torch.cosine_similarity(whole.flatten(), estimate, dim=0) > 0.95


@pytest.mark.parametrize("anchor", ["group", "credit", "evidence", "explore"])
def test_first_order_anchors_have_a_gradient_before_the_first_update(anchor: str) -> None:
    target = rows_of(scores() + 0.5 * torch.nan_to_num(scores(2), neginf=0)) if anchor == "explore" else None
    loss, grad = gradient(anchor, scores(), target=target)
    assert loss != 0
    assert grad.norm() > 1e-3


def test_the_average_rollout_is_no_success() -> None:
    """Rewards 1, ½, ½, 0: `group` pulls to where the first one looked, and not to where the average ones did."""
    advantages = group_advantages(torch.tensor([1.0, 0.5, 0.5, 0.0])).double()
    assert advantages[1] == 0
    rows, old = rows_of(scores()), rows_of(scores(1))
    found = ANCHORS["group"].term(state(rows, old=old, advantages=advantages)).loss
    now, then = ((x[..., :P] * MASK[..., None]).sum(1) for x in (rows, old))
    now, then = (x / x.sum(-1, keepdim=True) for x in (now, then))
    expected = (WEIGHTS.sum(1) * advantages.abs() * jensen_shannon(now, then[0].expand(G, -1))).sum()
    torch.testing.assert_close(found, expected)


def test_the_credit_of_a_key_is_what_looking_there_was_worth_when_the_rollouts_were_made() -> None:
    rows, old = rows_of(scores()), rows_of(scores(1))
    found = ANCHORS["credit"].term(state(rows, old=old)).loss
    looked = (old[..., :P] * MASK[..., None]).sum(1)
    looked = looked / looked.sum(-1, keepdim=True)
    worth = (ADVANTAGES @ looked) / looked.sum(0)
    target = old[..., :P] * worth.exp()
    now, target = (x / x.sum(-1, keepdim=True).clamp(min=1e-30) for x in (rows[..., :P], target))
    torch.testing.assert_close(found, (WEIGHTS * jensen_shannon(now, target)).sum())


@pytest.mark.parametrize("anchor", ["group", "credit"])
def test_anchors_of_the_group_have_none_while_all_rollouts_look_at_the_same_place(anchor: str) -> None:
    same = scores()[:1, :1].expand(G, R, -1)
    loss, grad = gradient(anchor, same)
    assert loss.abs() < 1e-9
    assert grad.norm() < 1e-9


@pytest.mark.parametrize(("anchor", "part"), [("old", "old"), ("ref", "target"), ("explore", "target")])
def test_a_step_pulls_successes_to_the_target_and_pushes_failures_away(anchor: str, part: str) -> None:
    start, target = scores(), rows_of(scores(1))
    _, grad = gradient(anchor, start, **{part: target})
    before, after = (jensen_shannon(rows_of(x), target) for x in (start, start - 0.1 * grad))
    change = after - before
    assert (change[MASK & (ADVANTAGES > 0)[:, None]] < 0).all()
    assert (change[MASK & (ADVANTAGES < 0)[:, None]] > 0).all()


def test_group_pulls_every_rollout_to_where_the_successful_ones_looked() -> None:
    def looked(logits: Tensor) -> Tensor:
        pooled = rows_of(logits)[..., :P].sum(1)
        return pooled / pooled.sum(-1, keepdim=True)

    start = scores()
    target = looked(start)[ADVANTAGES > 0].mean(0)
    loss, grad = gradient("group", start)
    before, after = (jensen_shannon(looked(x), target.expand(G, P)) for x in (start, start - 0.1 * grad))
    assert (after < before).all()
    torch.testing.assert_close(loss, (WEIGHTS.sum(1) * ADVANTAGES.abs() * before).sum())


def test_group_without_a_success_trains_nothing() -> None:
    loss, grad = gradient("group", scores(), advantages=torch.zeros(G, dtype=torch.float64))
    assert loss == 0
    assert not grad.any()


def test_credit_pulls_every_rollout_to_keys_that_only_successful_ones_looked_at() -> None:
    """Key 0 belongs to the successes, key 1 to the failures, key 2 to all: Â is the advantages of those that looked."""
    looks = torch.zeros(G, 1, P, dtype=torch.float64)
    looks[..., 2] = 0.5
    for g, key in enumerate((0, 1, 0, 1)):
        looks[g, 0, key] = 0.5
    rows = looks.clone().requires_grad_()
    weights = torch.full((G, 1), 1 / G, dtype=torch.float64)
    loss = ANCHORS["credit"].term(state(rows, weights=weights)).loss
    worth = torch.tensor([ADVANTAGES[0], ADVANTAGES[1], 0, 0, 0, 0])
    target = looks * worth.exp()
    target = target / target.sum(-1, keepdim=True)
    torch.testing.assert_close(loss, jensen_shannon(looks, target).mean())
    # A success is to look more at its own key, a failure less at its own, and both trade that against the common one.
    assert target[0, 0, 0] > 0.5 > target[1, 0, 1]


def test_evidence_pulls_every_rollout_onto_it_whatever_it_was_rewarded() -> None:
    def on_evidence(logits: Tensor) -> Tensor:
        rows = rows_of(logits)[..., :P]
        return rows[..., EVIDENCE].sum(-1)[ANSWER] / rows.sum(-1)[ANSWER]

    start = scores()
    loss, grad = gradient("evidence", start)
    assert not grad[~ANSWER].any()
    assert (on_evidence(start - 0.1 * grad) > on_evidence(start)).all()
    other, same = gradient("evidence", start, advantages=-ADVANTAGES)
    assert loss == other
    assert torch.equal(grad, same)
    metrics = ANCHORS["evidence"].term(state(rows_of(start))).metrics
    seen = metrics["attention/on_evidence"]
    torch.testing.assert_close(seen.total / seen.weight, on_evidence(start).mean())
    assert metrics["attention/without_evidence"].total == 0


def test_ease_is_the_kl_to_its_mixture_with_the_gradient_worked_out_by_hand() -> None:
    """∂ KL(p ‖ q)/∂ score_k = p_k · (ln p_k/q_k − KL), for a softmax over the prompt alone."""
    density = torch.rand(P, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    loss, grad = gradient("evidence", scores(), density=density, divergence="kl")
    p = torch.where(MASK[..., None], scores()[..., :P].softmax(-1), 0.0)
    q = density / density.sum()
    ratio = torch.where(MASK[..., None], (p / q).clamp_min(1e-300).log(), 0.0)
    kl = (p * ratio).sum(-1)
    weights = WEIGHTS * ANSWER
    torch.testing.assert_close(loss, (weights * kl).sum())
    torch.testing.assert_close(grad[..., :P], weights[..., None] * p * (ratio - kl[..., None]))
    torch.testing.assert_close(grad[..., P:], torch.zeros(G, R, R, dtype=torch.float64))


def test_rows_may_have_evidence_of_their_own() -> None:
    """The same for all, said once or row by row, is the same; and each row is pulled to its own."""
    own = EVIDENCE.expand(G, R, P).clone()
    for name in ("jsd", "kl"):
        loss, grad = gradient("evidence", scores(), divergence=name)
        again, repeated = gradient("evidence", scores(), evidence=own, divergence=name)
        torch.testing.assert_close((loss, grad), (again, repeated))
    own[0] = ~EVIDENCE
    _, other = gradient("evidence", scores(), evidence=own)
    last = int(LENGTHS[0]) - 1
    assert (other[0, last, :P][EVIDENCE] > 0).all()
    assert (other[0, last, :P][~EVIDENCE] < 0).all()
    torch.testing.assert_close(other[1:], gradient("evidence", scores())[1][1:])


def test_a_worth_between_nothing_and_all_is_pulled_in_between() -> None:
    pulls = [gradient("evidence", scores(), evidence=worth * EVIDENCE)[1].norm() for worth in (0.0, 0.3, 1.0)]
    assert pulls[0] < 1e-12 < pulls[1] < pulls[2]


def test_evidence_trains_nothing_where_it_is_not_known_or_all_is_looked_at_already() -> None:
    loss, grad = gradient("evidence", scores(), evidence=None)
    assert loss == 0
    assert not grad.any()
    unknown = ANCHORS["evidence"].term(state(rows_of(scores()), evidence=None)).metrics
    assert unknown["attention/without_evidence"].total == 1
    padding = torch.zeros(G, R, P + R, dtype=torch.float64)
    assert ANCHORS["evidence"].term(state(padding, evidence=None)).loss == 0, "also where no token counts"
    _, grad = gradient("evidence", scores(), evidence=torch.ones(P, dtype=torch.bool))
    assert grad.norm() < 1e-9


@pytest.mark.parametrize("anchor", list(ANCHORS))
def test_padding_and_zero_advantages_train_nothing(anchor: str) -> None:
    _, grad = gradient(anchor, scores(), old=rows_of(scores(1)), target=rows_of(scores(2)))
    assert not grad[~MASK].any()
    if anchor not in ("group", "credit", "evidence"):  # which are about the whole group, or about looks alone
        advantages = ADVANTAGES.clone()
        advantages[0] = 0
        _, grad = gradient(anchor, scores(), old=rows_of(scores(1)), target=rows_of(scores(2)), advantages=advantages)
        assert not grad[0].any()
        assert grad[1].any()


def test_the_loss_weighs_tokens_as_told_and_metrics_split_by_sign() -> None:
    rows, target = rows_of(scores()), rows_of(scores(1))
    term = attention_loss(rows, target, ADVANTAGES, WEIGHTS)
    divergence = jensen_shannon(rows, target)
    by_hand = sum(
        ADVANTAGES[g] * divergence[g, : LENGTHS[g]].mean() / G  # the weights above are GRPO's
        for g in range(G)
    )
    torch.testing.assert_close(term.loss, by_hand)
    for name, chosen in (("positive", [0, 2]), ("negative", [1, 3])):
        total, count = term.metrics[f"attention/jsd_{name}"]
        assert count == LENGTHS[chosen].sum()
        torch.testing.assert_close(total / count, torch.cat([divergence[g, : LENGTHS[g]] for g in chosen]).mean())


@pytest.mark.parametrize("anchor", list(ANCHORS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [float("nan"), float("inf")])
def test_rows_that_do_not_count_reach_neither_loss_nor_gradient(anchor: str, dtype: torch.dtype, held: float) -> None:
    """Whatever the policy's, the old and the target rows hold there; for `evidence`, in each of its targets and divergences."""
    parts = (
        [{}]
        if anchor != "evidence"
        else [{"divergence": name, "target": kind} for name in ("jsd", "kl") for kind in (0, 1)]
    )
    for part in parts:
        found = []
        for inside in (0.0, held):
            rows, old, target = (rows_of(scores(seed)).to(dtype) for seed in range(3))
            density = rows_of(scores(3))[..., :P].to(dtype) + 0.01
            worth = EVIDENCE.to(dtype).expand(G, R, P).clone()
            uncounted = ~ANSWER if anchor == "evidence" else ~MASK
            if inside:
                for each in (rows, old, target, density, worth):
                    each[uncounted] = inside
            rows.requires_grad_()
            given = state(rows, old, target, evidence=worth, divergence=part.get("divergence", "jsd"))
            given = dataclasses.replace(given, density=density if part.get("target") else None)
            loss = ANCHORS[anchor].term(given).loss
            found.append((loss.detach(), torch.autograd.grad(loss, rows)[0]))
        (loss, grad), (again, repeated) = found
        assert loss.isfinite()
        assert grad[~uncounted].any()
        assert loss == again
        assert torch.equal(grad, repeated)
        assert not grad[uncounted].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_before_the_first_box_have_no_mixture_and_no_part_in_the_kl(dtype: torch.dtype) -> None:
    """Boxes that completions state: the density of rows before the first is 0. By hand, on the rows that count."""
    density = torch.zeros(G, R, P, dtype=dtype)
    density[:3, 1:] = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.1], dtype=dtype)
    counted = MASK & (density.sum(-1) > 0)  # the last completion states none
    rows = rows_of(scores())[..., :P].to(dtype).requires_grad_()
    given = state(rows, evidence=density > 0.15, answer=counted, density=density, divergence="kl")
    loss = ANCHORS["evidence"].term(given).loss
    (found,) = torch.autograd.grad(loss, rows)
    leaf = rows.detach().double().requires_grad_()
    p = leaf[counted] / leaf[counted].sum(-1, keepdim=True)
    q = density[counted].double() / density[counted].double().sum(-1, keepdim=True)
    expected = ((p * (p / q).log()).sum(-1) * WEIGHTS[counted]).sum()
    digits = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.01}
    torch.testing.assert_close(loss.double(), expected, **digits)
    torch.testing.assert_close(found.double(), torch.autograd.grad(expected, leaf)[0], **digits)
    assert not found[~counted].any()


def test_an_old_weight_that_was_rounded_off_gives_a_finite_kl_and_gradient() -> None:
    """A softmax of scores more than 104 apart holds a 0 in float32. What it costs to look there is its smallest number's."""
    rows = rows_of(scores()).float()
    old = rows.clone()
    old[..., 3] = 0
    rows.requires_grad_()
    loss = ANCHORS["evidence"].term(state(rows, old=old, divergence="kl")).loss
    p, raised = rows[..., :P], old[..., :P] * EVIDENCE.exp()
    p, raised = (x / x.sum(-1, keepdim=True).clamp(min=1e-30) for x in (p, raised))
    raised = raised.clamp(min=torch.finfo(torch.float32).tiny)
    expected = ((p * (p.clamp(min=1e-30) / raised).log()).sum(-1) * WEIGHTS * ANSWER).sum()
    torch.testing.assert_close(loss.double(), expected)
    (grad,) = torch.autograd.grad(loss, rows)
    assert grad.isfinite().all()
    assert grad[..., 3][ANSWER].min() > 0  # away from there


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_credit_of_large_rewards_that_are_not_scaled_is_finite(scale: float) -> None:
    """p_old · exp Â / Z as a softmax; Â of 90 has no exp in float32."""
    rows, old = (rows_of(scores(seed)).float().requires_grad_() for seed in (0, 1))
    advantages = torch.tensor([scale, -scale, scale, -scale])
    loss = ANCHORS["credit"].term(state(rows, old=old.detach(), advantages=advantages)).loss
    (grad,) = torch.autograd.grad(loss, rows)
    assert grad.isfinite().all()
    before = old.detach().double()[..., :P]
    looked = (before * MASK[..., None]).sum(1)
    looked = looked / looked.sum(-1, keepdim=True)
    worth = (advantages.double() @ looked) / looked.sum(0)
    target = (before.clamp(min=1e-300).log() + worth).softmax(-1) * MASK[..., None]
    now = rows.detach().double()[..., :P]
    now = now / now.sum(-1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(loss.detach().double(), (WEIGHTS * jensen_shannon(now, target)).sum(), rtol=1e-5, atol=0)


# --- the derivations of docs/method.md ------------------------------------------------------------------------------


def along(scores: Tensor, change: Tensor) -> Tensor:
    """F · change: what a change of the scores does to their softmax, p_i (change_i − mean_p change)."""
    p = scores.softmax(-1)
    return p * (change - (p * change).sum(-1, keepdim=True))


def jsd_gradient(scores: Tensor, target: Tensor) -> Tensor:
    """∂ JSD(softmax(scores) ‖ target) / ∂ scores, row by row."""
    scores = scores.detach().requires_grad_()
    return torch.autograd.grad(jensen_shannon(scores.softmax(-1), target).sum(), scores)[0]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_gradient_in_the_scores() -> None:
    """½ p (ln p/m − KL(p ‖ m)), whatever the target."""
    s, target = drawn(P, seed=0), drawn(P, seed=1).softmax(-1)
    p = s.softmax(-1)
    log_ratio = (2 * p / (p + target)).log()
    expected = p * (log_ratio - (p * log_ratio).sum()) / 2
    torch.testing.assert_close(jsd_gradient(s, target), expected)


def test_near_the_policy_the_gradient_leads_to_the_target_and_the_divergence_is_a_square() -> None:
    """A target made by a bias η pulls with −¼ F η at a distance of ⅛ Var_p η; what is left out is smaller by the size of η."""
    s, direction = drawn(P, seed=0), drawn(P, seed=1)
    p, errors = s.softmax(-1), []
    for size in (1e-3, 1e-2):
        eta = size * direction
        target = (s + eta).softmax(-1)
        first_order = -along(s, eta) / 4
        errors.append((jsd_gradient(s, target) - first_order).norm() / first_order.norm())
        variance = (p * eta**2).sum() - (p * eta).sum() ** 2
        torch.testing.assert_close(jensen_shannon(p, target), variance / 8, rtol=20 * size, atol=0)
    assert errors[0] < 1e-3
    assert errors[1] / errors[0] == pytest.approx(10, rel=0.1)


def test_old_multiplies_the_move_and_knows_no_direction_of_its_own() -> None:
    """After a move δ of the scores the paper's term adds +¼ A F δ: less of the same move where A > 0, more of it where A < 0."""
    s, move = drawn(P, seed=0), 1e-3 * drawn(P, seed=1)
    gradient = jsd_gradient(s + move, s.softmax(-1))
    torch.testing.assert_close(gradient, along(s, move) / 4, rtol=1e-2, atol=1e-9)


def test_credit_is_the_policy_gradient_of_the_worth_of_a_look() -> None:
    """Its pull is +¼ F Â, where F Â = ∂/∂s Σ_k p(k) Â(k), and its target argmax_q E_q[Â] − KL(q ‖ p)."""
    small = 1e-3 * ADVANTAGES
    prompt = scores().masked_fill(torch.arange(P + R) >= P, float("-inf"))
    rows = rows_of(prompt)
    looked = rows[..., :P].sum(1) / LENGTHS[:, None]
    worth = (small @ looked / looked.sum(0)).requires_grad_(False)
    _, grad = gradient("credit", prompt, advantages=small)
    expected = -WEIGHTS[..., None] * along(prompt[..., :P], worth.expand(G, R, P)) / 4
    torch.testing.assert_close(grad[..., :P][MASK], expected[MASK], rtol=1e-2, atol=1e-9)

    s = prompt[0, 0, :P].clone().requires_grad_()
    [improvement] = torch.autograd.grad((s.softmax(-1) * worth).sum(), s)
    torch.testing.assert_close(improvement, along(s.detach(), worth))

    p, big = s.detach().softmax(-1), drawn(P, seed=3)

    def objective(q: Tensor) -> Tensor:
        return (q * big).sum(-1) - (q * (q / p).log()).sum(-1)

    best = p * big.exp() / (p * big.exp()).sum()
    others = (best.log() + 0.1 * drawn(100, P, seed=4)).softmax(-1)
    assert (objective(others) < objective(best)).all()


def test_evidence_is_the_policy_gradient_of_the_mass_on_it() -> None:
    """To first order in the worth of a look; here of a hundredth in place of 1."""
    s = drawn(P, seed=0)
    worth = EVIDENCE.double() / 100
    target = (s + worth).softmax(-1)
    torch.testing.assert_close(jsd_gradient(s, target), -along(s, worth) / 4, rtol=0.02, atol=1e-8)
    logits = s.clone().requires_grad_()
    [mass] = torch.autograd.grad(logits.softmax(-1)[EVIDENCE].sum(), logits)
    torch.testing.assert_close(along(s, EVIDENCE.double()), mass)
    # The anchor's target is that of worth 1.
    rows = s.softmax(-1).expand(G, 1, P).contiguous()
    weights = torch.full((G, 1), 1 / G, dtype=torch.float64)
    every = torch.ones(G, 1, dtype=torch.bool)
    loss = ANCHORS["evidence"].term(state(rows, weights=weights, answer=every)).loss
    torch.testing.assert_close(loss, jensen_shannon(s.softmax(-1), (s + EVIDENCE.double()).softmax(-1)))


def test_explore_is_a_score_function_estimate() -> None:
    """Over many groups its mean gradient is −(1 − 1/G) σ²/4 · F · ∂E[r]/∂s: rewarded attention, in the softmax's own metric."""
    groups, sigma = 20_000, 0.1
    s, value = drawn(P, seed=0), drawn(P, seed=1)
    eta = sigma * drawn(groups, G, P, seed=2)
    looked = s + eta
    reward = (looked.softmax(-1) * value).sum(-1)  # what a rollout earns depends on where it looks
    advantages = reward - reward.mean(dim=1, keepdim=True)
    gradient = (advantages[..., None] * jsd_gradient(s.expand_as(eta), looked.softmax(-1))).mean(dim=(0, 1))
    improvement = along(looked, value.expand_as(eta)).mean(dim=(0, 1))  # ∂E[r]/∂s
    torch.testing.assert_close(gradient, -(1 - 1 / G) * sigma**2 / 4 * along(s, improvement), rtol=0.03, atol=1e-6)

    # Without a baseline the mean is another one: terms of second order in η are as large, and no longer cancel.
    biased = (reward[..., None] + 1) * jsd_gradient(s.expand_as(eta), looked.softmax(-1))
    assert (biased.mean(dim=(0, 1)) - gradient).norm() > gradient.norm()


def test_the_token_gradient_is_the_score_of_sampled_attention_given_the_words() -> None:
    """Tweedie's formula, and what Rao and Blackwell make of it; two keys, three words, Gauss-Hermite quadrature."""
    sigma, s = 0.5, torch.tensor([0.3, -0.4], dtype=torch.float64)
    words = torch.tensor([[4.0, -2.0], [-1.0, 3.0], [0.5, 0.0]], dtype=torch.float64)
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(40))
    eta = sigma * torch.cartesian_prod(nodes, nodes)
    mass = torch.cartesian_prod(weights, weights).prod(-1)
    mass = mass / mass.sum()

    def said(s: Tensor) -> Tensor:
        """π(y | s + η), `[nodes, words]`."""
        return ((s + eta).softmax(-1) @ words.T).softmax(-1)

    together = mass[:, None] * said(s)
    smoothed = together.sum(0)
    token_scores = torch.autograd.functional.jacobian(lambda s: (mass @ said(s)).log(), s)
    expected = together.T @ (eta / sigma**2) / smoothed[:, None]
    torch.testing.assert_close(expected, token_scores)

    reward = torch.tensor([1.0, 0.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close((smoothed * reward) @ token_scores, (together @ reward) @ (eta / sigma**2))
    of_tokens = (smoothed * reward**2) @ token_scores.square().sum(-1)
    of_looks = (together @ reward**2) @ (eta / sigma**2).square().sum(-1)
    assert of_looks > 5 * of_tokens  # the same mean, and mostly noise


def test_credit_reads_advantages_of_another_precision() -> None:
    """Rewards are float32; rows may not be."""
    rows = rows_of(scores())
    expected = ANCHORS["credit"].term(state(rows)).loss
    found = ANCHORS["credit"].term(state(rows, advantages=ADVANTAGES.float())).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("anchor", ["old", "ref", "group", "credit", "evidence"])
def test_a_completion_that_does_not_count_has_no_part_in_the_term(anchor: str) -> None:
    """`mask_truncated_completions`: the first, a success, was truncated. The term is that of the others alone."""
    counted = WEIGHTS * torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None]
    others = torch.tensor([False, True, True, True])
    now, old = scores(), rows_of(scores(1))
    loss, gradients = gradient(anchor, now, weights=counted, old=old, target=old)
    assert loss.isfinite()
    assert not torch.nan_to_num(gradients[0]).any()
    logits = now[others].requires_grad_()
    alone = AttentionState(
        logits.softmax(-1) * MASK[others][..., None], old[others], old[others], ADVANTAGES[others], WEIGHTS[others], P,
        EVIDENCE, ANSWER[others],
    )  # fmt: skip
    torch.testing.assert_close(ANCHORS[anchor].term(alone).loss.detach(), loss)
