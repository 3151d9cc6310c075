"""Computes what the losses compare the policy with, once per rollout batch before the first update.

A target is a function of the run's models and one micro-batch of scored groups. To add one, write the function and put it into
`TARGETS` under a name; an anchor that asks for that name (`Anchor(term, target=name)`) finds it in `AttentionState.target`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ral.attention import GroupOutput
from ral.attention.models import pretrained, resolve_layers
from ral.config import RALConfig
from ral.errors import ConfigError
from ral.objective.needs import Needs
from ral.objective.perception import PERCEPTION
from ral.objective.perception.state import OldTokens
from ral.objective.terms import Mean, importance
from ral.rollouts.group import OldPass, ScoredGroup, Targets, TrainingGroup
from ral.rollouts.lock_step import lock_step
from ral.training.distillation import teacher_pass
from ral.training.evidence_sources import SOURCES
from ral.training.forward import packed_forward, rows_of
from ral.training.masked_images import with_masked_media

#: Mean distance of log-probabilities per token below which two passes are of one model; bfloat16 rounds to some hundredths.
SAME_MODEL = 0.05


@dataclass(frozen=True)
class Sources:
    """The inputs of target functions: settings and models of a run.

    Attributes:
        reference: the start model, for as long as it is used. teacher: None unless `needs` has one.
        step: optimiser steps made before.
        processor: the policy's, or its tokenizer.
        accelerator: of the run's processes; None: there is one.
    """

    args: RALConfig
    needs: Needs
    policy: nn.Module
    reference: Callable[[], AbstractContextManager[nn.Module]]
    teacher: nn.Module | None
    processor: Any
    step: int = 0
    accelerator: Accelerator | None = None

    def lock_step(self) -> AbstractContextManager[None]:
        """What passes of the policy are made inside of which each process may need another number."""
        return nullcontext() if self.accelerator is None else lock_step(self.accelerator, self.policy)

    @property
    def layers(self) -> tuple[int, ...]:
        """The trained layers by their numbers from 0: the keys of `Targets.target_rows`."""
        return resolve_layers(pretrained(self.policy), self.args.attention_layers)

    def captured(self, target: str) -> Sequence[int]:
        """The layers that the pass of this target captures: none unless attention is trained to it."""
        return self.args.attention_layers if self.needs.anchor_target == target else ()


#: Of one micro-batch: what is known of each group by this target.
Target = Callable[[Sources, Sequence[ScoredGroup]], list[Targets]]


def of_reference(sources: Sources, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The start model's log-probabilities, and its rows if they are the anchor's target."""
    with sources.reference() as reference:
        outputs = packed_forward(reference, groups, sources.args, layers=sources.captured("ref"))
    return [Targets(ref_logps=output.logps, target_rows=rows_of(output, sources.args) or None) for output in outputs]


def of_biased_policy(sources: Sources, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The policy under the look bias that the rollouts were sampled under."""
    biases, layers = [group.look_bias for group in groups], sources.captured("explore")
    outputs = packed_forward(sources.policy, groups, sources.args, layers=layers, look_bias=biases)
    return [Targets(biased_logps=output.logps, target_rows=rows_of(output, sources.args) or None) for output in outputs]


def of_evidence(sources: Sources, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """Which tokens show the evidence, and which rows are to look at them (`ral.training.evidence_sources`)."""
    args = sources.args
    with sources.lock_step():
        return SOURCES[args.evidence_from](args, sources.processor, sources.policy, groups)


def of_teacher(sources: Sources, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The teacher's rows and hidden states, those that the run learns from; layers are counted in each model by itself."""
    args = sources.args
    assert sources.teacher is not None
    anchored = bool(sources.captured("teacher"))
    passed = teacher_pass(
        sources.teacher,
        [group.prompt for group in groups],
        [group.ids for group in groups],
        layers=args.attention_layers if anchored or args.attention_distill_coef > 0 else (),
        heads=args.teacher_heads,
        query=args.attention_query,
        temperature=args.temperature,
        kernel=args.attention_kernel,
    )
    found = []
    for output, hidden in passed:
        rows = list(rows_of(output, args).values())
        found.append(
            Targets(
                teacher_rows=rows or None,
                teacher_hidden=hidden if args.distill_coef else None,
                target_rows=dict(zip(sources.layers, rows, strict=True)) if anchored else None,
            )
        )
    return found


def of_masked_images(sources: Sources, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The policy's log-probabilities under masked images; None for prompts without visual tokens, where nothing can be masked.

    There is a pass in any case: processes that share weights out run theirs together.
    """
    args, step = sources.args, sources.step
    shown = [len(group.prompt.places) > 0 for group in groups]
    masked = [
        with_masked_media(sources.policy, group, sources.processor, args, step)
        for group, seen in zip(groups, shown, strict=True)
        if seen
    ]
    outputs = iter(packed_forward(sources.policy, masked or groups[:1], args))
    return [Targets(masked_logps=next(outputs).logps) if seen else Targets() for seen in shown]


#: By name, as `Anchor.target` has it.
TARGETS: dict[str, Target] = {
    "ref": of_reference,
    "explore": of_biased_policy,
    "evidence": of_evidence,
    "teacher": of_teacher,
    "masked": of_masked_images,
}


def refuse_unknown_targets(needs: Needs) -> None:
    """Raise ConfigError for a target that nothing computes."""
    for name in needs.targets:
        if name not in TARGETS:
            raise ConfigError(
                f"an anchor asks for the target {name!r}, which nothing computes; put a function of that name into "
                f"ral.training.targets.TARGETS, or ask for one of {', '.join(TARGETS)}"
            )


@torch.no_grad()
def compute_targets(sources: Sources, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """Compute all targets that the run needs, for the groups of one micro-batch."""
    found = [Targets() for _ in groups]
    for name in sources.needs.targets:
        found = [known.updated(new) for known, new in zip(found, TARGETS[name](sources, groups), strict=True)]
    return found


def training_groups(sources: Sources, groups: Sequence[ScoredGroup]) -> list[TrainingGroup]:
    """The groups of one micro-batch with their targets."""
    targets = compute_targets(sources, groups)
    return [TrainingGroup(scored=group, targets=own) for group, own in zip(groups, targets, strict=True)]


def old_pass(group: TrainingGroup, output: GroupOutput, args: RALConfig) -> tuple[OldPass, dict[str, Mean]]:
    """Make the old pass from the first inner update's pass: there the policy is still the one that made the rollouts.

    Tokens from another engine are weighted by the ratio of the policy's probability to the engine's.
    """
    rows = {layer: rows.detach() for layer, rows in rows_of(output, args).items()}
    factors, observed = perception_factors(group, output, args)
    biased = group.targets.biased_logps
    if biased is not None and args.explore_ratio == "behaviour":
        return OldPass(logps=biased, rows=rows, factors=factors), observed
    logps = output.logps.detach()
    if (sampled_at := group.scored.sampling_logps) is None:
        return OldPass(logps=logps, rows=rows, factors=factors), observed
    sampled_at = sampled_at.to(logps.device)
    ratio, gap = importance(logps, sampled_at, args.importance_cap), (logps - sampled_at).abs()
    metrics = {"rollout/importance": Mean.over(ratio, output.mask), "rollout/logp_gap": Mean.over(gap, output.mask)}
    return OldPass(logps=logps, rows=rows, importance=ratio, factors=factors), metrics | observed


def keep_old(group: TrainingGroup, output: GroupOutput, args: RALConfig, step: int) -> dict[str, Mean]:
    """Store the first inner update's pass of a group as its old pass, in the step of this number; returns its metrics then."""
    if group.old is not None:
        return {}
    if step == 0:
        require_start(group, output)
    group.old, metrics = old_pass(group, output, args)
    return metrics


def perception_factors(
    group: TrainingGroup, output: GroupOutput, args: RALConfig
) -> tuple[Tensor | None, dict[str, Mean]]:
    """How much each token's advantage counts for the run's rival (`perception`), from the policy's first pass."""
    rival = PERCEPTION[args.perception]
    if rival.factors is None:
        return None, {}
    attention = torch.stack([output.alpha(layer) for layer in output.layers]).mean(dim=0) if rival.rows else None
    old = OldTokens(output.logps.detach(), group.targets.masked_logps, attention, output.visual, output.mask)
    factors = rival.factors(old, args)
    return factors, {"perception/trained_tokens": Mean.over((factors > 0).float(), output.mask)}


@torch.no_grad()
def pass_before_updates(sources: Sources, groups: Sequence[TrainingGroup], *, capture: bool) -> dict[str, Mean]:
    """Give the groups of a micro-batch their old pass before any update, as their own first pass comes after updates on other groups.

    Args:
        capture: also keep the old rows.

    Returns:
        The metrics of `old_pass`, over all groups.
    """
    layers = sources.args.attention_layers if capture else ()
    outputs = packed_forward(sources.policy, [group.scored for group in groups], sources.args, layers=layers)
    found: dict[str, Mean] = {}
    for group, output in zip(groups, outputs, strict=True):
        group.old, metrics = old_pass(group, output, sources.args)
        for name, mean in metrics.items():
            found[name] = Mean(*(a + b for a, b in zip(found[name], mean, strict=True))) if name in found else mean
    return found


def require_start(group: TrainingGroup, output: GroupOutput) -> None:
    """Raise ConfigError unless the reference says of these tokens what the policy says before its first update.

    The KL is to the start, so it is 0 there. An adapter whose "off" is another model than the start would show here.

    Args:
        output: the policy's pass over the group.
    """
    if group.targets.ref_logps is None:
        return
    gap = float((output.logps.detach() - group.targets.ref_logps)[output.mask].abs().mean())
    if gap > SAME_MODEL:
        raise ConfigError(
            f"the reference is not the model that training starts from: before the first update its log-probabilities are off "
            f"the policy's by {gap:.3g} a token. Give the trainer the model itself, or an adapter that leaves its base model as "
            "it is; beta=0 and another attention_anchor than ref need no reference"
        )
