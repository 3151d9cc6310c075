"""Anchors: the target that attention is pulled to after a success and pushed away from after a failure.

An anchor is a function that takes an `AttentionState` and returns a `Term`. To add one, write the function and put it into
`ANCHORS` under a name. Trainer, configuration and command line then know this name. If the anchor needs a new kind of target, add a
function that computes it to `ral.training.targets.TARGETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ral.attention.rows import renormalise
from ral.objective.terms import Mean, Term, attention_loss

#: Nats of worth below the best key beyond which a key of `credit` is worth no less: e^−60 of a row is nothing, but not 0.
MAX_FALL = 60.0


@dataclass(frozen=True)
class AttentionState:
    """One group's attention in one layer, as an anchor sees it.

    Attributes:
        rows: `[G, R, K]` the policy's current rows, with gradient.
        old: `[G, R, K]` its rows when the rollouts were made.
        target: `[G, R, K]` the target rows that the anchor asked for, such as the reference's or the teacher's.
        advantages: `[G]`. weights: `[G, R]`, see `ral.objective.terms.token_weights`.
        shared_keys: how many leading keys are the same position in every completion (the prompt's).
        evidence: how much a look at each key is worth, from 0 to 1 (or bool), `[shared_keys]`, or `[G, R, shared_keys]` where
            rows have evidence of their own; None if unknown or not requested.
        answer: `[G, R]` bool, the rows that evidence trains, if it was requested: those of the answer, or others (`evidence_rows`).
        density: `[shared_keys]` or `[G, R, shared_keys]`, the distribution that rows are pulled to; None: to raised old rows.
        divergence: of `evidence`, by its name in `ral.objective.divergence.DIVERGENCES`.
    """

    rows: Tensor
    old: Tensor
    target: Tensor | None
    advantages: Tensor
    weights: Tensor
    shared_keys: int
    evidence: Tensor | None = None
    answer: Tensor | None = None
    density: Tensor | None = None
    divergence: str = "jsd"


@dataclass(frozen=True)
class Anchor:
    """An anchor and its requirements (`ral.objective.needs.Needs`).

    Attributes:
        term: the loss of one group and layer.
        target: the name, in `ral.training.targets.TARGETS`, of what computes `AttentionState.target` (`evidence`: the field of
            that name); None: the anchor compares with the old rows.
        needs: further built-in targets whose sources its own target takes: `ref` (the start model), `teacher` (a teacher),
            `explore` (rollouts under a look bias), `evidence` (records that say where it is).
        policy_pass: its target takes one more pass of the policy for every rollout batch.
        uses_advantages: False where the loss is the same for every rollout, however rewarded.
        needs_inner_updates: its gradient vanishes identically when every rollout batch gets one update only.
    """

    term: Callable[[AttentionState], Term]
    target: str | None = None
    needs: tuple[str, ...] = ()
    policy_pass: bool = False
    uses_advantages: bool = True
    needs_inner_updates: bool = False

    def uses(self, target: str) -> bool:
        """Whether it compares with this built-in target, or takes that target's sources."""
        return target == self.target or target in self.needs


def old(state: AttentionState) -> Term:
    """The paper's anchor: A · JSD(p_θ ‖ p_old). Second order in the update: exactly zero while p_θ = p_old."""
    return attention_loss(state.rows, state.old, state.advantages, state.weights)


def to_target(state: AttentionState) -> Term:
    """A · JSD(p_θ ‖ target) with the rows of the start model (`ref`), the biased rollout (`explore`) or the `teacher`."""
    assert state.target is not None
    return attention_loss(state.rows, state.target, state.advantages, state.weights)


def group(state: AttentionState) -> Term:
    """|A| · JSD(where the rollout looks ‖ where the group's successful rollouts looked), pooled over the completion.

    "Where it looks" is the mean row over the completion's tokens, on the prompt's keys only: those are the same positions
    for all rollouts, whatever their wording and length. First order wherever rollouts of a group look at different places.
    """
    mask = state.weights > 0
    now = _where_it_looked(state.rows[..., : state.shared_keys], mask)
    then = _where_it_looked(state.old[..., : state.shared_keys], mask)
    succeeded = (state.advantages > 0) & mask.any(dim=1)
    target = then[succeeded].mean(dim=0) if bool(succeeded.any()) else torch.zeros_like(then[0])
    # One row per completion, which weighs as much as all its tokens.
    weights = state.weights.sum(dim=1, keepdim=True)
    return attention_loss(now[:, None], target.expand(len(now), 1, -1), state.advantages.abs(), weights)


def credit(state: AttentionState) -> Term:
    """JSD(p_θ ‖ p_old · exp Â / Z) on the prompt's keys: the whole group's rewards give every key a value.

    Â(k) = Σ_g A_g p_g(k) / Σ_g p_g(k) is the value of a look at key k; p_g is the mean row of rollout g (see `group`). The
    target is the best policy near the old one, argmax_q E_q[Â] − KL(q ‖ p_old). The gradient towards it is the policy gradient
    of E_p[Â]. First order wherever rollouts with different rewards look at different places.
    """
    looked = _where_it_looked(state.old[..., : state.shared_keys], state.weights > 0)
    total = looked.sum(dim=0)
    seen = total > 0
    worth = torch.where(seen, (state.advantages.to(looked.dtype) @ looked) / torch.where(seen, total, 1.0), 0.0)
    best = torch.where(seen, worth, worth.min()).max()  # unscaled rewards have a worth whose exp would overflow
    return _improved(state, (worth - best).clamp(-MAX_FALL, 0))


def evidence(state: AttentionState) -> Term:
    """D(p_θ ‖ p_old · e^{w(k)} / Z), w = 1 on the evidence: rewards attention on the evidence directly.

    As `credit`, but the worth w of a look is known instead of estimated. The expected worth of a row is its mass on the
    evidence. The gradient is exact, so rollouts need not be compared with each other. First order while some of the attention
    is elsewhere. A group without known evidence contributes nothing, and `without_evidence` counts it. Only the answer's rows
    are trained unless `evidence_rows` says otherwise, because other rows may need to look at places that the data does not mark.

    With a density the target is that, as in EASE (arXiv 2605.30912): KL(p_θ ‖ mixture of Gaussians on the boxes).
    """
    if state.evidence is None:
        return Term(state.rows[..., :0].sum(), {"attention/without_evidence": Mean.of(1.0)})
    assert state.answer is not None
    trained = replace(state, weights=torch.where(state.answer, state.weights, 0.0))
    worth = state.evidence.to(state.rows.dtype)
    if state.density is None:
        term = _improved(trained, worth, state.divergence)
    else:
        term = _pulled(trained, state.density.to(state.rows.dtype), state.divergence)
    looks = renormalise(state.rows[..., : state.shared_keys].detach())
    seen = {
        "attention/without_evidence": Mean.of(0.0),
        "attention/on_evidence": Mean.over((looks * worth).sum(dim=-1), trained.weights > 0),
        "attention/evidence_rows": Mean.over((trained.weights > 0).float(), state.weights > 0),
    }
    return Term(term.loss, term.metrics | seen)


def _improved(state: AttentionState, worth: Tensor, divergence: str = "jsd") -> Term:
    """D(p_θ ‖ argmax_q E_q[worth] − KL(q ‖ p_old)) of every row on the prompt's keys; worth: `[…, shared_keys]`."""
    old = renormalise(state.old[..., : state.shared_keys])
    return _pulled(state, old * worth.exp(), divergence)


def _pulled(state: AttentionState, target: Tensor, divergence: str) -> Term:
    """D(p_θ ‖ target) of every row on the prompt's keys, whatever was rewarded; target: `[…, shared_keys]`, in any scale."""
    rows = renormalise(state.rows[..., : state.shared_keys])
    target = renormalise(target).expand_as(rows)
    return attention_loss(rows, target, torch.ones_like(state.advantages), state.weights, divergence)


def _where_it_looked(rows: Tensor, mask: Tensor) -> Tensor:
    """`[G, R, K]` rows → `[G, K]`: their mean over real tokens, summing to 1."""
    return renormalise(torch.where(mask[..., None], rows, 0.0).sum(dim=1))


ANCHORS: dict[str, Anchor] = {
    "old": Anchor(old, needs_inner_updates=True),
    "ref": Anchor(to_target, target="ref"),
    "group": Anchor(group),
    "credit": Anchor(credit),
    "evidence": Anchor(evidence, target="evidence", uses_advantages=False),
    "explore": Anchor(to_target, target="explore", policy_pass=True),
    "teacher": Anchor(to_target, target="teacher"),
}
