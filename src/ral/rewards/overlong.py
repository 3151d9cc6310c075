"""The soft punishment of overlong completions (DAPO, arXiv 2503.14476, eq. 13), as TRL's `get_soft_overlong_punishment`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ral.rewards.calls import RewardError

#: The name that a recipe gives it.
OVERLONG = "soft_overlong_punishment"


@dataclass(frozen=True)
class SoftOverlongPunishment:
    """0 up to `max_completion_len − soft_punish_cache` tokens, then falling in a line to −1 at `max_completion_len`.

    Raises RewardError for a cache that is not between 1 and the longest completion.
    """

    max_completion_len: int
    soft_punish_cache: int

    def __post_init__(self) -> None:
        if not 1 <= self.soft_punish_cache <= self.max_completion_len:
            raise RewardError(
                f"soft_punish_cache={self.soft_punish_cache} must be between 1 and max_completion_length={self.max_completion_len}"
            )

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        start = self.max_completion_len - self.soft_punish_cache
        return [max(-1.0, min(0.0, (start - len(ids)) / self.soft_punish_cache)) for ids in completion_ids]
