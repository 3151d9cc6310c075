"""The losses of prompt groups from the policy's packed forward. Each is a `Term`: a loss and its metrics.

The group stores its targets and its old pass. `ral.objective` holds the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ral.attention import GroupOutput, visual_share
from ral.attention.models import pretrained, trains_vision
from ral.config import RALConfig
from ral.models.sharding import zero_vision_loss
from ral.objective.anchors import ANCHORS, AttentionState
from ral.objective.divergence import jensen_shannon
from ral.objective.perception import PERCEPTION
from ral.objective.terms import Mean, Term, cancelled_share, distillation_loss, entropy_bonus, grpo_loss
from ral.rollouts.group import TrainingGroup
from ral.training.distillation import token_divergence
from ral.training.entropy import TRAINED, Gather, alone, bonus_weights, chosen_tokens, with_trained_entropy
from ral.training.forward import packed_forward, rows_of


@dataclass(frozen=True)
class MicroBatchLoss:
    """Scalar losses of one micro-batch, sums over its groups.

    Attributes:
        token: GRPO's. attention: the anchor's, without λ. distillation: with its coefficients.
        metrics: of every group and term.
    """

    token: Tensor
    attention: Tensor
    distillation: Tensor
    metrics: list[dict[str, Mean]]

    def terms(self, attention_weight: float) -> tuple[Tensor, Tensor]:
        """token, weight · attention."""
        return self.token, attention_weight * self.attention

    def total(self, attention_weight: float) -> Tensor:
        """token + weight · attention + distillation."""
        loss = self.token + attention_weight * self.attention if attention_weight else self.token
        return loss + self.distillation


def policy_pass(
    model: nn.Module, groups: Sequence[TrainingGroup], args: RALConfig, *, capture: bool, teacher: nn.Module | None
) -> list[GroupOutput]:
    """Run the pass that trains, with the trained layers' rows (if `capture`) and the statistics of tokens that losses take."""
    statistics = token_divergence(teacher, groups, args)
    return packed_forward(
        model,
        [group.scored for group in groups],
        args,
        layers=args.attention_layers if capture else (),
        token_statistics=with_trained_entropy(statistics) if args.entropy_coef else statistics,
    )


def micro_batch_loss(
    model: nn.Module,
    groups: Sequence[TrainingGroup],
    outputs: Sequence[GroupOutput],
    args: RALConfig,
    measure: bool = False,
    gather: Gather = alone,
) -> MicroBatchLoss:
    """The losses of `outputs`, the policy's pass over `groups`, each of which has its old pass.

    Args:
        measure: see `attention_term`. gather: brings tokens of all processes together, for what is a share of them.
    """
    token = attention = distillation = _nothing(model, groups, args)
    metrics = []
    chosen = chosen_tokens(groups, outputs, args, gather)
    bonuses = bonus_weights(groups, chosen, args, gather)
    for group, output, acting, bonus in zip(groups, outputs, chosen, bonuses, strict=True):
        terms = (
            token_term(group, output, args, acting, bonus),
            attention_term(group, output, args, measure),
            distillation_term(group, output, args),
        )
        token, attention, distillation = (
            total + term.loss for total, term in zip((token, attention, distillation), terms, strict=True)
        )
        metrics += [term.metrics for term in terms]
    return MicroBatchLoss(token, attention, distillation, metrics)


def _nothing(model: nn.Module, groups: Sequence[TrainingGroup], args: RALConfig) -> Tensor:
    """0; with a gradient of 0 for a vision tower that is trained and saw nothing."""
    blind = not any(len(group.prompt.places) for group in groups)
    if blind and trains_vision(pretrained(model)):
        return zero_vision_loss(model)
    return torch.zeros((), device=args.device)


def token_term(
    group: TrainingGroup,
    output: GroupOutput,
    args: RALConfig,
    chosen: Tensor | None = None,
    bonus: Tensor | None = None,
) -> Term:
    """GRPO's token loss, with the KL to the reference, the entropy bonus and a rival's term (`perception`).

    Args:
        chosen: `[G, R]`, see `chosen_tokens`; None: all. bonus: `[G, R]`, see `bonus_weights`; None: without the bonus.
    """
    assert group.old is not None
    targets = group.targets
    term = grpo_loss(
        output.logps,
        group.old.logps,
        group.scored.advantages,
        group.weights,
        epsilon=args.epsilon,
        epsilon_high=args.epsilon_high,
        delta=args.delta,
        sapo_temperatures=(args.sapo_temperature_pos, args.sapo_temperature_neg),
        loss_type=args.loss_type,
        importance_sampling_level=args.importance_sampling_level,
        chosen=chosen,
        factors=group.old.factors,
        ref_logps=targets.ref_logps if args.beta else None,
        beta=args.beta,
    )
    loss, metrics = term.loss, {"entropy": Mean.over(output.entropy, output.mask)}
    if bonus is not None:
        loss = loss + args.entropy_coef * entropy_bonus(output.extra[TRAINED], bonus)
    rival = PERCEPTION[args.perception].term
    if rival is not None and targets.masked_logps is not None:
        extra = rival(output.logps, targets.masked_logps, group.weights, args)
        loss, metrics = loss + extra.loss, metrics | extra.metrics
    if targets.biased_logps is not None:
        gap = (targets.biased_logps - output.logps).abs()
        metrics["explore/logp_gap"] = Mean.over(gap, output.mask)
    return Term(loss, term.metrics | metrics)


def attention_term(group: TrainingGroup, output: GroupOutput, args: RALConfig, measure: bool = False) -> Term:
    """The anchor's loss, its mean over the trained layers; 0 where no attention was captured.

    Args:
        measure: also measure how much of the signal cancels inside the group; costs a small backward pass.
    """
    assert group.old is not None
    rows, targets = rows_of(output, args), group.targets
    metrics: dict[str, Mean] = {}
    losses = [torch.zeros((), device=output.logps.device)]
    if targets.boxes_left_out is not None:
        metrics["attention/boxes_left_out"] = Mean(*targets.boxes_left_out)
    anchor, keys = ANCHORS[args.attention_anchor], (args.attention_keys, args.attention_skip)
    shared_keys, evidence, density = group.shared_keys(*keys), group.shared_evidence(*keys), group.shared_density(*keys)
    for layer, current in rows.items():
        old = group.old.rows[layer]
        # Without a target the term is measured, but not trained: an arm without the attention term.
        target = old if targets.target_rows is None else targets.target_rows[layer]
        state = AttentionState(
            current,
            old,
            target,
            group.scored.attention_advantages,
            group.weights,
            shared_keys,
            evidence,
            targets.answer,
            density,
            args.evidence_divergence,
        )
        term = anchor.term(state)
        losses.append(term.loss / len(rows))
        metrics |= term.metrics | {"attention/loss": Mean.of(term.loss)}
        if measure and term.loss.requires_grad:
            (signal,) = torch.autograd.grad(term.loss, current, retain_graph=True)
            metrics["attention/cancelled"] = cancelled_share(signal, group.scored.ids, args.attention_query == "token")
        if len(group.prompt.places):
            share = visual_share(output.layers[layer].detach(), output.own[layer], output.mask, output.visual)
            metrics["visual_share"] = Mean.of(share)
    return Term(torch.stack(losses).sum(), metrics)


def distillation_term(group: TrainingGroup, output: GroupOutput, args: RALConfig) -> Term:
    """μ · GKD + γ · JSD(student's rows ‖ teacher's rows), without advantage; 0 without a teacher."""
    loss = torch.zeros((), device=output.logps.device)
    metrics: dict[str, Mean] = {}
    if "gkd" in output.extra:
        term = distillation_loss(output.extra["gkd"], group.weights, "distill/gkd")
        loss, metrics = loss + args.distill_coef * term.loss, metrics | term.metrics
    taught = group.targets.teacher_rows
    if args.attention_distill_coef and taught is not None:
        for student, teacher in zip(rows_of(output, args).values(), taught, strict=True):
            divergence = jensen_shannon(student, teacher)
            term = distillation_loss(divergence, group.weights, "distill/attention_jsd")
            loss = loss + args.attention_distill_coef * term.loss / len(taught)
            metrics |= term.metrics
    return Term(loss, metrics)
