"""The heads that a run chose at its start, in `heads.json`. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ral.errors import RunError
from ral.files import atomic_write_text
from ral.runs.names import HEADS


@dataclass(frozen=True)
class ChosenHeads:
    """The outcome of `attention_heads: {top: k, by: …}`.

    Attributes:
        by: what heads were ranked by. records: how many records were looked at.
        layers: the captured layers, from 0. heads: the chosen heads of each, best first.
        scores: the mean of what they were ranked by, for every head of each layer.
    """

    by: str
    records: int
    layers: list[int]
    heads: list[list[int]]
    scores: list[list[float]]

    def sentence(self) -> str:
        """The heads in words."""
        named = (
            f"layer {layer}: {', '.join(map(str, heads))} of {len(scores)}"
            for layer, heads, scores in zip(self.layers, self.heads, self.scores, strict=True)
        )
        return f"heads by {self.by} on {self.records} records; {'; '.join(named)}"

    def write(self, run: Path) -> None:
        atomic_write_text(run / HEADS, json.dumps(asdict(self)) + "\n")


def read_chosen_heads(run: Path) -> ChosenHeads | None:
    """The heads of a run folder; None where none were measured. Raises RunError for a file that cannot be read."""
    file = run / HEADS
    if not file.is_file():
        return None
    try:
        found = ChosenHeads(**json.loads(file.read_text(encoding="utf-8")))
        if not (found.heads and all(isinstance(head, int) for heads in found.heads for head in heads)):
            raise ValueError("no heads")
        return found
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{file}: expected the heads that the run chose at its start ({error}); start the run anew"
        ) from error
