"""The studies: which arms are compared, on what, and with what in common.

The endpoint of every study, fixed before its runs: held-out accuracy of greedy answers at equal numbers of prompts, rollouts
and updates. Where the model looks (pointing game, mass in box) comes second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """`recipes/testbed/<recipe>.yaml` with `changes`; `label` is what tables call it."""

    recipe: str
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """`arms` by name, the first being what the others are compared with; `common` are changes of every arm.

    `note` tells a reader of the page what the study asks; `contrasts` are pairs of an arm and its control, beside the baseline.
    """

    title: str
    note: str
    arms: Mapping[str, Arm]
    common: Mapping[str, Any]
    held_out: int
    contrasts: tuple[tuple[str, str], ...] = ()

    @property
    def baseline(self) -> str:
        return next(iter(self.arms))


_GRPO = Arm("grpo", "GRPO")
_OLD = Arm("ral", "RAL old, λ = 1 (paper)")
_EXPLORE = Arm("explore", "RAL explore, λ = 10, σ = 0.5")
_BIAS = Arm("explore", "its exploration alone, λ = 0", {"attention_coef": 0})


def _direct(recipe: str) -> dict[str, Arm]:
    """Arms that answer without thinking, from one recipe of RAL-zero."""
    bias = {"attention_anchor": "explore"}
    return {
        "grpo": Arm(recipe, "GRPO-zero", {"attention_coef": 0}),
        "old": Arm(recipe, "RAL-zero old, λ = 1 (paper)"),
        "explore": Arm(recipe, "RAL-zero explore, λ = 10", {"attention_coef": 10} | bias),
        "explore-bias": Arm(recipe, "its exploration alone, λ = 0", {"attention_coef": 0} | bias),
    }


STUDIES: dict[str, Study] = {
    "rings": Study(
        "Ring search, thinking",
        "Primary comparison: does RAL (`explore`) answer better than GRPO, and better than its own exploration without the "
        "attention term? The paper's anchor (`old`) and the controls of either stand beside it.",
        {
            "grpo": _GRPO,
            "old": _OLD,
            "explore": _EXPLORE,
            "explore-bias": _BIAS,
            "old-0.5": Arm("ral", "RAL old, λ = 0.5", {"attention_coef": 0.5}),
            "old-5": Arm("ral", "RAL old, λ = 5", {"attention_coef": 5}),
            "old-scaled": Arm(
                "ral", "RAL old, gradient a tenth of the tokens'", {"attention_share": 0.1, "gradient_norm_steps": 5}
            ),
            "old-absolute": Arm("ral", "RAL old, |A|", {"attention_advantage": "absolute"}),
            "old-shuffled": Arm("ral", "RAL old, A shuffled", {"attention_advantage": "shuffled"}),
            "explore-absolute": Arm("explore", "RAL explore, |A|", {"attention_advantage": "absolute"}),
            "explore-shuffled": Arm("explore", "RAL explore, A shuffled", {"attention_advantage": "shuffled"}),
            "group": Arm("group", "RAL group, λ = 1"),
            "group-10": Arm("group", "RAL group, λ = 10", {"attention_coef": 10}),
            "grpo-4": Arm("grpo", "GRPO, four inner updates", {"num_iterations": 4}),
            "old-4": Arm("ral", "RAL old, four inner updates", {"num_iterations": 4}),
            "explore-4": Arm("explore", "RAL explore, four inner updates", {"num_iterations": 4}),
        },
        {"max_steps": 160},
        held_out=512,
        contrasts=(("explore", "explore-bias"), ("old-4", "grpo-4"), ("explore-4", "grpo-4")),
    ),
    "zero": Study(
        "Ring search, direct answers (RAL-zero)",
        "The same search without thinking: one token to answer with, so that only its row can look.",
        _direct("ral-zero"),
        {"max_steps": 160},
        held_out=512,
        contrasts=(("explore", "explore-bias"),),
    ),
    "easy-vqa": Study(
        "easy-vqa, direct answers (RAL-zero)",
        "A second domain, of other authors: questions about one shape, most of them yes or no, without boxes. Its cold start is made "
        "first (see the recipe).",
        _direct("easy-vqa-zero"),
        {"max_steps": 100},
        held_out=1024,
        contrasts=(("explore", "explore-bias"),),
    ),
}
