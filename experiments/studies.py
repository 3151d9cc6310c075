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
    """`arms` by name, the first being what the others are compared with; `common` are changes of every arm."""

    title: str
    arms: Mapping[str, Arm]
    common: Mapping[str, Any]
    held_out: int

    @property
    def baseline(self) -> str:
        return next(iter(self.arms))


_GRPO = Arm("grpo", "GRPO")
_OLD = Arm("ral", "RAL old, λ = 1 (paper)")
_EXPLORE = Arm("explore", "RAL explore, λ = 10, σ = 0.5")
_BIAS = Arm("explore", "its exploration alone, λ = 0", {"attention_coef": 0})

STUDIES: dict[str, Study] = {
    "rings": Study(
        "Ring search, thinking",
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
        },
        {"max_steps": 160},
        held_out=512,
    ),
    "zero": Study(
        "Ring search, direct answers (RAL-zero)",
        {
            "grpo": Arm("ral-zero", "GRPO-zero", {"attention_coef": 0}),
            "old": Arm("ral-zero", "RAL-zero old, λ = 1 (paper)"),
            "explore": Arm(
                "ral-zero", "RAL-zero explore, λ = 10", {"attention_coef": 10, "attention_anchor": "explore"}
            ),
            "explore-bias": Arm(
                "ral-zero", "its exploration alone, λ = 0", {"attention_coef": 0, "attention_anchor": "explore"}
            ),
        },
        {"max_steps": 160},
        held_out=512,
    ),
}
