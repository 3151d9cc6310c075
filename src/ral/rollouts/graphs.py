"""Decoding steps as CUDA graphs: the kernels of a step are recorded once and then started by one call.

Without a graph the host starts every kernel of every layer by itself, which takes longer than the GPU needs to run them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ral.attention.models import is_sharded
from ral.attention.prefix import SharedPrefix
from ral.rollouts.batch import Part, advance, next_logits

logger = logging.getLogger(__name__)


class Steps:
    """The decoding steps of one rollout.

    A step is recorded where the batch is the same as in the step before, which has run as usual: batches that change with
    every token are not worth it, and what libraries set up in their first call is not recorded.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.recordable = torch.cuda.is_available() and not is_sharded(model)
        self._seen: list[object] = []  # the prefixes of the last step
        self._graph: _Graph | None = None

    def advance(self, batch: Sequence[Part], longest: int) -> None:
        """Compute the logits of the next tokens of all parts; their completions have `longest` tokens at most."""
        for part in batch:
            part.make_room(longest)
        prefixes: list[object] = [part.prefix for part in batch]
        same = len(prefixes) == len(self._seen) and all(a is b for a, b in zip(prefixes, self._seen, strict=True))
        if not same:
            self._seen, self._graph = prefixes, None
        elif self._graph is None and self.recordable and all(map(_is_static, batch)):
            self._graph = self._recorded(batch)
        if self._graph is None:
            advance(self.model, batch)
        else:
            self._graph.replay(batch)

    def _recorded(self, batch: Sequence[Part]) -> _Graph | None:
        try:
            return _Graph(self.model, batch)
        except RuntimeError as error:
            self.recordable = False
            logger.warning(
                "rollouts go on without CUDA graphs, which are several times as fast: a decoding step of this model cannot be "
                "recorded (%s)",
                error,
            )
            return None


def _is_static(part: Part) -> bool:
    """Whether its steps have the same shapes and addresses for every token."""
    prefix = part.prefix
    return isinstance(prefix, SharedPrefix) and prefix.room is not None and part.newest.is_cuda


class _Graph:
    """One step of a batch that keeps its rows and its memory: `newest [ΣN]` in, `logits [ΣN, V]` out, both always in the same place."""

    def __init__(self, model: nn.Module, batch: Sequence[Part]):
        self.newest: Tensor = torch.cat([part.newest for part in batch])
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):  # records, and computes nothing
            self.logits = next_logits(model, batch, self.newest)

    def replay(self, batch: Sequence[Part]) -> None:
        torch.cat([part.newest for part in batch], out=self.newest)
        self.graph.replay()
        for part, own in zip(batch, self.logits.split([part.size for part in batch]), strict=True):
            part.logits = own
