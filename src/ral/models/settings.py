"""`VisionFields`: the settings of a vision tower in training, declared once."""

from __future__ import annotations

from dataclasses import dataclass

from ral.data.settings import setting
from ral.data.unread import Reader, given
from ral.errors import ConfigError

#: What reads each setting.
VISION_READERS: dict[str, tuple[Reader, ...]] = {
    "vision_cache_gb": (given("vision_cache", "vision_cache to a folder"),),
}


@dataclass
class VisionFields:
    """The settings of the vision tower, as a base class of larger settings."""

    freeze_vision: bool = setting(
        True, "Keep vision tower and projector as they are; their features are computed once."
    )
    vision_cache: str | None = setting(
        None, "Folder that keeps the features of the frozen vision tower, for this run and others; None: none is kept."
    )
    vision_cache_gb: float = setting(
        20.0, "Size of vision_cache in 10⁹ bytes; entries that were not used for longest go."
    )

    def check_vision(self) -> None:
        """Raise ConfigError for a cache of features that change, and for one without a size."""
        if self.vision_cache_gb <= 0:
            raise ConfigError(f"vision_cache_gb must be positive, got {self.vision_cache_gb}")
        if self.vision_cache is not None and not self.freeze_vision:
            raise ConfigError(
                f"vision_cache={self.vision_cache!r} with freeze_vision=False: the features of a tower that is trained change with "
                "every update; leave vision_cache out, or freeze the tower"
            )
