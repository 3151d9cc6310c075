"""Typed records between the stages: a prompt group from its rollouts to the objective."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ral.attention import GroupOutput, Prompt
from ral.attention.keys import Keys, select_keys
from ral.data.record import Record
from ral.rollout import Completion


@dataclass
class ScoredGroup:
    """One prompt with its G scored completions; what later stages add starts as None.

    Attributes:
        texts: the completions as text. rewards: `[G]` by reward function, NaN where it did not apply.
        reward, advantages: `[G]`.
        weights: `[G, R]`, how much each token counts in the optimiser step.
        look_bias: `[G, P]` the rollouts were sampled under (`explore`).
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
    weights: Tensor = field(init=False)  # once the whole optimiser step is known
    look_bias: Tensor | None = None
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
    def lengths(self) -> Tensor:
        """`[G]` tokens per completion."""
        return torch.tensor([len(completion.ids) for completion in self.completions])

    def shared_keys(self, keys: Keys) -> int:
        """Leading keys of a selected row that are the same position for every completion."""
        return int(self.prompt.visual.sum()) if keys == "visual" else len(self.prompt.input_ids)


def selected_rows(output: GroupOutput, keys: Keys) -> dict[int, Tensor]:
    """Policy rows of every captured layer over the chosen keys: layer → `[G, R, K]`."""
    prompt_length = len(output.visual)
    return {layer: select_keys(rows, keys, prompt_length, output.visual) for layer, rows in output.layers.items()}


def draw_look_bias(prompt: Prompt, num_generations: int, sigma: float, generator: torch.Generator) -> Tensor:
    """`[G, P]`: η ~ N(0, σ²) on the visual positions (all positions of a prompt without any), 0 elsewhere."""
    where = prompt.visual if bool(prompt.visual.any()) else torch.ones_like(prompt.visual)
    noise = torch.randn(num_generations, len(where), generator=generator).to(where.device)
    return sigma * noise * where
