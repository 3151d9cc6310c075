"""`PerceptionFields`: the settings of the token-side rivals, declared once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ral.data.settings import setting
from ral.errors import ConfigError

#: The rivals that read each setting.
READ_BY = {
    "perception_coef": ("papo",),
    "perception_entropy_coef": ("papo",),
    "perception_mask": ("papo", "vppo"),
    "perception_patch": ("papo", "vppo"),
    "perception_top": ("vppo", "at_rl"),
    "perception_floor": ("vppo", "at_rl"),
}


@dataclass
class PerceptionFields:
    """The settings of the token-side rivals, as a base class of larger settings."""

    perception: str = setting(
        "none",
        "Token-side rival of the attention term: papo (arXiv 2507.06448), vppo (2510.09285), at_rl (2602.11455) or none.",
    )
    perception_coef: float = setting(0.01, "γ of papo, the weight of the KL to the answer under a masked image.")
    perception_entropy_coef: float = setting(0.03, "η of papo, the weight of its entropy loss.")
    perception_mask: float = setting(0.6, "Share of an image that is masked (papo: 0.6, vppo: 0.5).")
    perception_patch: int = setting(14, "Side of a masked square, in pixels of the original image or frame.")
    perception_top: float = setting(0.4, "Share of tokens that are trained (vppo: 0.4), or are anchors (at_rl: 0.15).")
    perception_floor: float = setting(
        0.9, "Smallest factor on a completion's advantage (vppo), or share of the largest (at_rl)."
    )

    def check_perception(self) -> None:
        """Raise ConfigError for a value out of its range, and for a setting that nothing reads."""
        for item in fields(PerceptionFields)[1:]:
            value = getattr(self, item.name)
            if value != item.default and self.perception not in READ_BY[item.name]:
                readers = " or ".join(READ_BY[item.name])
                raise ConfigError(
                    f"{item.name}={value} does nothing with perception={self.perception!r}; set perception to {readers}, or leave "
                    "it out"
                )
        for name in ("perception_coef", "perception_entropy_coef"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("perception_mask", "perception_top", "perception_floor"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.perception_patch < 1:
            raise ConfigError(f"perception_patch must be at least 1, got {self.perception_patch}")
