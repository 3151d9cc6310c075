"""`PerceptionFields`: the settings of the token-side rivals, declared once."""

from __future__ import annotations

from dataclasses import dataclass

from ral.data.settings import setting
from ral.data.unread import Reader, chosen
from ral.errors import ConfigError

#: What reads each setting: these rivals.
PERCEPTION_READERS: dict[str, tuple[Reader, ...]] = {
    "perception_coef": (chosen("perception", ("papo",)),),
    "perception_entropy_coef": (chosen("perception", ("papo",)),),
    "perception_mask": (chosen("perception", ("papo", "vppo")),),
    "perception_patch": (chosen("perception", ("papo", "vppo")),),
    "perception_top": (chosen("perception", ("vppo", "at_rl")),),
    "perception_floor": (chosen("perception", ("vppo", "at_rl")),),
}

#: Values with which a rival, where it has all of them, adds nothing and weighs everything alike.
WITHOUT_EFFECT: dict[str, dict[str, float]] = {
    "papo": {"perception_coef": 0, "perception_entropy_coef": 0},
    "vppo": {"perception_top": 1, "perception_floor": 1},
    "at_rl": {"perception_floor": 1},
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
        """Raise ConfigError for a value out of its range, and for a rival that would change nothing."""
        for name in ("perception_coef", "perception_entropy_coef"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("perception_mask", "perception_top", "perception_floor"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.perception_patch < 1:
            raise ConfigError(f"perception_patch must be at least 1, got {self.perception_patch}")
        idle = WITHOUT_EFFECT.get(self.perception, {})
        if idle and all(getattr(self, name) == value for name, value in idle.items()):
            told = " and ".join(f"{name}={getattr(self, name)}" for name in idle)
            raise ConfigError(
                f"perception={self.perception!r} changes nothing with {told}; choose another value of {' or '.join(idle)}, or "
                "leave perception out"
            )
