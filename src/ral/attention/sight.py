"""How far back the tokens of a decoder layer attend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Sight:
    """The tokens that a token attends to: all before it, the last `window` (itself included), or those in its `chunk`."""

    window: int | None = None
    chunk: int | None = None

    def reaches(self, length: int) -> bool:
        """Whether every token of a sequence of this length sees its beginning."""
        return all(size is None or length <= size for size in (self.window, self.chunk))

    def hides(self, query: Tensor, key: Tensor) -> Tensor:
        """Which keys are out of a query's sight, by their places in the sequence; broadcasts. Not for `EVERYTHING`."""
        if self.window is not None:
            return query - key >= self.window
        assert self.chunk is not None
        return query // self.chunk != key // self.chunk


EVERYTHING = Sight()


def sight_of(module: nn.Module) -> Sight:
    """The sight of an attention layer by its configuration; without `layer_types`, a window holds for every layer."""
    config: Any = module.config
    kinds = getattr(config, "layer_types", None)
    return _sight(
        kinds[module.layer_idx] if kinds else "sliding_attention",  # type: ignore[index]
        getattr(config, "sliding_window", None),
        getattr(config, "attention_chunk_size", None),
    )


@cache
def _sight(kind: str, window: int | None, chunk: int | None) -> Sight:
    if kind == "sliding_attention":
        return Sight(window=window)
    return Sight(chunk=chunk) if kind == "chunked_attention" else EVERYTHING
