"""Typed records between the stages: a prompt group from its rollouts to the objective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ral.attention import GroupOutput, Prompt
from ral.attention.keys import Keys, select_keys
from ral.data.record import Record
from ral.objective.terms import Mean
from ral.rollouts.sampling import Completion


@dataclass
class ScoredGroup:
    """One prompt with its G scored completions; what later stages add starts as None.

    Attributes:
        texts: the completions as text. rewards: `[G]` by reward function, NaN where it did not apply.
        reward, advantages: `[G]`.
        weights: `[G, R]`, how much each token counts in the optimiser step.
        attention_advantages: `[G]`, the advantages of the attention term: GRPO's own, or a control.
        evidence: `[P]` bool, the prompt's tokens that show it (`evidence`), None where it is not known. answer: `[G, R]` bool,
            the completions' tokens that give the answer.
        look_bias: `[G, P]` the rollouts were sampled under (`explore`), biased_logps: `[G, R]` under it.
        old_logps: `[G, R]`, old_rows: layer → `[G, R, K]`: the policy when the rollouts were made.
        ref_logps: `[G, R]` of the start model. target_rows: layer → `[G, R, K]` the anchor asked for.
        teacher_rows: one `[G, R, K]` per trained layer, teacher_hidden: `[ΣR, d]`, of the distillation's teacher.
    """

    record: Record
    prompt: Prompt
    completions: list[Completion]
    texts: list[str]
    rewards: dict[str, Tensor]
    reward: Tensor
    advantages: Tensor
    attention_advantages: Tensor
    weights: Tensor = field(init=False)  # once the whole optimiser step is known
    evidence: Tensor | None = None
    answer: Tensor | None = None
    look_bias: Tensor | None = None
    biased_logps: Tensor | None = None
    old_logps: Tensor | None = None
    old_rows: dict[int, Tensor] = field(default_factory=dict)
    ref_logps: Tensor | None = None
    target_rows: dict[int, Tensor] | None = None
    teacher_rows: list[Tensor] | None = None
    teacher_hidden: Tensor | None = None

    @property
    def ids(self) -> list[Tensor]:
        return [completion.ids for completion in self.completions]

    @property
    def sampling_logps(self) -> Tensor | None:
        """`[G, R]` log-probabilities another engine drew the tokens at, 0 on padding; None where the policy drew them."""
        logps = [completion.logps for completion in self.completions if completion.logps is not None]
        return pad_sequence(logps, batch_first=True) if logps else None

    @property
    def lengths(self) -> Tensor:
        """`[G]` tokens per completion."""
        return torch.tensor([len(completion.ids) for completion in self.completions])

    def shared_keys(self, keys: Keys, skip: int = 0) -> int:
        """Leading keys of a selected row that are the same position for every completion."""
        return int(self.prompt.visual.sum()) if keys == "visual" else len(self.prompt.input_ids) - skip

    def shared_evidence(self, keys: Keys, skip: int = 0) -> Tensor | None:
        """Which of the `shared_keys` show the evidence."""
        if self.evidence is None:
            return None
        return self.evidence[self.prompt.visual] if keys == "visual" else self.evidence[skip:]

    def samples(self, step: int) -> Iterator[dict[str, Any]]:
        """One row of `samples.jsonl` per completion."""
        for g, text in enumerate(self.texts):
            yield {
                "step": step,
                "id": self.record.id,
                "question": self.record.question,
                "solution": self.record.solution,
                "completion": text,
                "reward": float(self.reward[g]),
                "rewards": {name: float(values[g]) for name, values in self.rewards.items()},
                "advantage": float(self.advantages[g]),
            }


def selected_rows(output: GroupOutput, keys: Keys, skip: int = 0) -> dict[int, Tensor]:
    """Policy rows of every captured layer over the chosen keys: layer → `[G, R, K]`."""
    prompt, visual = len(output.visual), output.visual
    return {layer: select_keys(rows, keys, prompt, visual, skip) for layer, rows in output.layers.items()}


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, Mean]:
    """Rewards, lengths and signal of rollouts."""
    reward = torch.stack([group.reward for group in groups])
    advantages = torch.stack([group.advantages for group in groups]).cpu()
    values = {
        "reward": reward,
        "reward_std": reward.std(dim=1),
        "groups_without_signal": (reward == reward[:, :1]).all(dim=1).float(),
        "advantage_std": advantages.std(dim=1),
        "completion_length": torch.cat([group.lengths for group in groups]).float(),
        "truncated": torch.tensor([float(c.truncated) for group in groups for c in group.completions]),
    }
    values |= {f"reward/{name}": torch.cat([group.rewards[name] for group in groups]) for name in groups[0].rewards}
    return {name: Mean.over(value, ~value.isnan()) for name, value in values.items()}


def draw_look_bias(prompt: Prompt, num_generations: int, sigma: float, generator: torch.Generator) -> Tensor:
    """`[G, P]`: η ~ N(0, σ²) on visual tokens, 0 elsewhere; on all tokens where a prompt has no visual ones."""
    where = prompt.visual if bool(prompt.visual.any()) else torch.ones_like(prompt.visual)
    noise = torch.randn(num_generations, len(where), generator=generator).to(where.device)
    return sigma * noise * where
