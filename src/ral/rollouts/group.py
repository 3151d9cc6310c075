"""Typed records between the stages: a prompt group from rollout to objective.

    SampledGroup → RewardedGroup → ScoredGroup → TrainingGroup(scored, Targets, OldPass)

A record is complete and frozen when its stage ends. `TrainingGroup` holds the records of one group. Only its `old` pass is set
later, by the first inner update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ral.attention import GroupOutput, Prompt
from ral.attention.keys import Keys, select_keys
from ral.data.record import Record
from ral.objective.terms import Mean
from ral.rollouts.sampling import Completion


@dataclass(frozen=True, kw_only=True)
class SampledGroup:
    """One prompt with its G completions.

    Attributes:
        look_bias: `[G, P]` that they were sampled under (`explore`); None without one.
    """

    record: Record
    prompt: Prompt
    completions: list[Completion]
    look_bias: Tensor | None = None

    @property
    def ids(self) -> list[Tensor]:
        return [completion.ids for completion in self.completions]

    @property
    def sampling_logps(self) -> Tensor | None:
        """`[G, R]` log-probabilities from the engine that sampled the tokens, 0 on padding; None if the policy sampled them."""
        logps = [completion.logps for completion in self.completions if completion.logps is not None]
        return pad_sequence(logps, batch_first=True) if logps else None

    @property
    def lengths(self) -> Tensor:
        """`[G]` tokens per completion."""
        return torch.tensor([len(completion.ids) for completion in self.completions])

    @property
    def mask(self) -> Tensor:
        """`[G, R]` bool, true on real tokens; on the CPU."""
        lengths = self.lengths
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def counted(self, mask_truncated: bool) -> Tensor:
        """`[G, R]` bool, the tokens that the loss counts: all real ones, or (`mask_truncated`) those of whole completions."""
        if not mask_truncated:
            return self.mask
        return self.mask & torch.tensor([not completion.truncated for completion in self.completions])[:, None]


@dataclass(frozen=True, kw_only=True)
class RewardedGroup(SampledGroup):
    """A sampled group with its rewards.

    Attributes:
        texts: the completions as text. rewards: `[G]` by reward function, NaN where it did not apply. reward: `[G]`.
        scorer_failures: completions that a scorer failed on.
        replaced: groups without a signal that it came in place of; None without `dynamic_sampling`.
        extra, logged: what reward functions logged: columns with a value per completion, and metrics with the values of all calls.
    """

    texts: list[str]
    rewards: dict[str, Tensor]
    reward: Tensor
    scorer_failures: int = 0
    replaced: int | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    logged: dict[str, list[float]] = field(default_factory=dict)

    def has_signal(self, mask_truncated: bool) -> bool:
        """Whether a token that counts has an advantage."""
        return bool((self.reward != self.reward[0]).any()) and bool(self.counted(mask_truncated).any())


@dataclass(frozen=True, kw_only=True)
class ScoredGroup(RewardedGroup):
    """A rewarded group with its advantages and weights.

    Attributes:
        advantages: `[G]`.
        attention_advantages: `[G]`, the advantages of the attention term: GRPO's own, or a control.
        weights: `[G, R]`, how much each token counts in the optimiser step.
    """

    advantages: Tensor
    attention_advantages: Tensor
    weights: Tensor

    def samples(self, step: int, prompt: str) -> Iterator[dict[str, Any]]:
        """One row of `samples.jsonl` per completion; the first holds the text of the `prompt`."""
        advantages = self.advantages.tolist()
        for g, text in enumerate(self.texts):
            yield {
                "step": step,
                "id": self.record.id,
                **({} if g else {"prompt": prompt}),
                "question": self.record.question,
                "solution": self.record.solution,
                "completion": text,
                "reward": float(self.reward[g]),
                "rewards": {name: float(values[g]) for name, values in self.rewards.items()},
                "advantage": advantages[g],
                **({"extra": {name: values[g] for name, values in self.extra.items()}} if self.extra else {}),
            }


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The values that the losses compare the policy with, detached. Fields that the run does not need are None.

    Attributes:
        ref_logps: `[G, R]` of the start model.
        target_rows: layer → `[G, R, K]`, the anchor's target.
        biased_logps: `[G, R]` of the policy under the look bias.
        evidence: the prompt's tokens that show it: `[P]` bool (or a worth from 0 to 1), or `[G, R, P]` where each row has its own.
        answer: `[G, R]` bool, the rows that evidence trains: of the tokens that give the answer, or what `evidence_rows` chooses.
        density: the mixture of Gaussians on the boxes, in the shapes of `evidence`.
        boxes_left_out: `[2]`, how many of the boxes that the completions state could be no evidence, and how many there are.
        masked_logps: `[G, R]` of the policy under masked images; None for prompts without visual tokens, too.
        teacher_rows: one `[G, R, K]` per trained layer. teacher_hidden: `[ΣR, d]`. Both of the distillation's teacher.
    """

    ref_logps: Tensor | None = None
    target_rows: dict[int, Tensor] | None = None
    biased_logps: Tensor | None = None
    evidence: Tensor | None = None
    answer: Tensor | None = None
    density: Tensor | None = None
    boxes_left_out: Tensor | None = None
    masked_logps: Tensor | None = None
    teacher_rows: list[Tensor] | None = None
    teacher_hidden: Tensor | None = None

    def updated(self, other: Targets) -> Targets:
        """These, and those of `other` that are known there."""
        known = {item.name: getattr(other, item.name) for item in fields(other)}
        return replace(self, **{name: value for name, value in known.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class OldPass:
    """The old policy's pass: the policy as it was when the rollouts were made. Detached.

    Attributes:
        logps: `[G, R]`, the denominator of the token ratio.
        rows: layer → `[G, R, K]`; empty where no attention is captured.
        importance: `[G, R]`, how much a token counts that another engine sampled; None where the policy sampled it.
        factors: `[G, R]`, how much each token's advantage counts by its dependence on the image (`perception`); None: alike.
    """

    logps: Tensor
    rows: dict[int, Tensor]
    importance: Tensor | None = None
    factors: Tensor | None = None


@dataclass(kw_only=True)
class TrainingGroup:
    """All records of one group; `old` is None until the first inner update's pass."""

    scored: ScoredGroup
    targets: Targets
    old: OldPass | None = None

    @property
    def prompt(self) -> Prompt:
        return self.scored.prompt

    @property
    def completions(self) -> list[Completion]:
        return self.scored.completions

    @property
    def weights(self) -> Tensor:
        """`[G, R]`, how much each token counts, with its importance."""
        importance = None if self.old is None else self.old.importance
        return self.scored.weights if importance is None else self.scored.weights * importance

    def shared_keys(self, keys: Keys, skip: int = 0) -> int:
        """Leading keys of a selected row that are the same position for every completion."""
        return len(on_keys(self.prompt.input_ids, self.prompt, keys, skip))

    def shared_evidence(self, keys: Keys, skip: int = 0) -> Tensor | None:
        """Which of the `shared_keys` show the evidence."""
        return self._on_keys(self.targets.evidence, keys, skip)

    def shared_density(self, keys: Keys, skip: int = 0) -> Tensor | None:
        """The mixture of Gaussians on the `shared_keys`; not renormalised where keys are left out."""
        return self._on_keys(self.targets.density, keys, skip)

    def _on_keys(self, values: Tensor | None, keys: Keys, skip: int) -> Tensor | None:
        if values is None:
            return None
        return on_keys(values, self.prompt, keys, skip)


def on_keys(values: Tensor, prompt: Prompt, keys: Keys, skip: int = 0) -> Tensor:
    """Values `[…, P]` of a prompt's tokens on those that selected rows cover."""
    match keys:
        case "visual":
            return values[..., prompt.visual]
        case "interior":
            return values[..., prompt.interior]
        case _:
            return values[..., skip:]


def selected_rows(output: GroupOutput, keys: Keys, skip: int = 0) -> dict[int, Tensor]:
    """Policy rows of every captured layer over the chosen keys: layer → `[G, R, K]`."""
    prompt, visual = len(output.visual), output.visual
    if keys == "interior" and output.interior is not None:
        visual = output.interior
    return {layer: select_keys(rows, keys, prompt, visual, skip) for layer, rows in output.layers.items()}


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, Mean]:
    """Rewards, lengths and signal of rollouts."""
    reward = torch.stack([group.reward for group in groups])
    advantages = torch.stack([group.advantages for group in groups])
    values = {
        "reward": reward,
        "reward_std": reward.std(dim=1),
        "groups_without_signal": (reward == reward[:, :1]).all(dim=1).float(),
        "advantage_std": advantages.std(dim=1),
        "completion_length": torch.cat([group.lengths for group in groups]).float(),
        "truncated": torch.tensor([float(c.truncated) for group in groups for c in group.completions]),
    }
    values |= {f"reward/{name}": torch.cat([group.rewards[name] for group in groups]) for name in groups[0].rewards}
    if groups[0].replaced is not None:
        values["prompts_replaced"] = torch.tensor([float(group.replaced or 0) for group in groups])
    means = {name: Mean.over(value, ~value.isnan()) for name, value in values.items()}
    for name in {name for group in groups for name in group.logged}:
        logged = torch.tensor([value for group in groups for value in group.logged.get(name, ())])
        means[name] = Mean(logged.sum(), torch.tensor(float(len(logged))))
    failures = torch.tensor(float(sum(group.scorer_failures for group in groups)))
    return means | {"scorer_failed": Mean(failures, torch.tensor(float(reward.numel())))}


def draw_look_bias(prompt: Prompt, num_generations: int, sigma: float, generator: torch.Generator) -> Tensor:
    """`[G, P]`: η ~ N(0, σ²) on visual tokens, 0 elsewhere; on all tokens where a prompt has no visual ones."""
    where = prompt.visual if len(prompt.places) else torch.ones_like(prompt.visual)
    noise = torch.randn(num_generations, len(where), generator=generator).to(where.device)
    return sigma * noise * where
