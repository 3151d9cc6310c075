"""The losses of one scored group, from the policy's packed forward: each is a `Term` of a loss and its metrics.

What they are held against (old log-probabilities and rows, the reference's, the anchor's target, the teacher's) was kept in
the group when its rollouts were made; the formulas are those of `objective` and `anchors`.
"""

from __future__ import annotations

import torch

from ral.attention import GroupOutput, visual_share
from ral.config import RALConfig
from ral.objective.anchors import ANCHORS, AttentionState
from ral.objective.divergence import jensen_shannon
from ral.objective.terms import Mean, Term, cancelled_share, distillation_loss, grpo_loss
from ral.rollouts.group import ScoredGroup, selected_rows


def token_term(group: ScoredGroup, output: GroupOutput, args: RALConfig) -> Term:
    """GRPO's clipped token loss, with the KL to the reference."""
    assert group.old_logps is not None
    term = grpo_loss(
        output.logps,
        group.old_logps,
        group.advantages,
        group.weights,
        epsilon=args.epsilon,
        epsilon_high=args.epsilon_high,
        ref_logps=group.ref_logps if args.beta else None,
        beta=args.beta,
    )
    metrics = {"entropy": Mean.over(output.entropy, output.mask)}
    if group.biased_logps is not None:
        gap = (group.biased_logps - output.logps).abs()
        metrics["explore/logp_gap"] = Mean.over(gap, output.mask)
    return Term(term.loss, term.metrics | metrics)


def attention_term(group: ScoredGroup, output: GroupOutput, args: RALConfig, measure: bool = False) -> Term:
    """The anchor's loss, its mean over the trained layers; 0 where no attention was captured.

    Args:
        measure: also measure how much of the signal cancels inside the group; costs a small backward pass.
    """
    rows = selected_rows(output, args.attention_keys, args.attention_skip)
    metrics: dict[str, Mean] = {}
    losses = [torch.zeros((), device=output.logps.device)]
    anchor, keys = ANCHORS[args.attention_anchor], (args.attention_keys, args.attention_skip)
    shared_keys, evidence = group.shared_keys(*keys), group.shared_evidence(*keys)
    for layer, current in rows.items():
        old = group.old_rows[layer]
        # Without a target the term is measured, but not trained: an arm without the attention term.
        target = old if group.target_rows is None else group.target_rows[layer]
        state = AttentionState(
            current, old, target, group.attention_advantages, group.weights, shared_keys, evidence, group.answer
        )
        term = anchor.term(state)
        losses.append(term.loss / len(rows))
        metrics |= term.metrics | {"attention/loss": Mean.of(term.loss)}
        if measure and term.loss.requires_grad:
            (signal,) = torch.autograd.grad(term.loss, current, retain_graph=True)
            metrics["attention/cancelled"] = cancelled_share(signal, group.ids, args.attention_query == "token")
        if bool(output.visual.any()):
            share = visual_share(output.layers[layer].detach(), output.own[layer], output.mask, output.visual)
            metrics["visual_share"] = Mean.of(share)
    return Term(torch.stack(losses).sum(), metrics)


def distillation_term(group: ScoredGroup, output: GroupOutput, args: RALConfig) -> Term:
    """μ · GKD + γ · JSD(student's rows ‖ teacher's rows), without advantage; 0 without a teacher."""
    loss = torch.zeros((), device=output.logps.device)
    metrics: dict[str, Mean] = {}
    if "gkd" in output.extra:
        term = distillation_loss(output.extra["gkd"], group.weights, "distill/gkd")
        loss, metrics = loss + args.distill_coef * term.loss, metrics | term.metrics
    if args.attention_distill_coef and group.teacher_rows is not None:
        rows = selected_rows(output, args.attention_keys, args.attention_skip).values()
        for student, teacher in zip(rows, group.teacher_rows, strict=True):
            divergence = jensen_shannon(student, teacher)
            term = distillation_loss(divergence, group.weights, "distill/attention_jsd")
            loss = loss + args.attention_distill_coef * term.loss / len(group.teacher_rows)
            metrics |= term.metrics
    return Term(loss, metrics)
