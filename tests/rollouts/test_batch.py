"""Which rows a step of decoding has: they leave the batch once enough of them can, and every prompt keeps as many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ral.rollouts.batch import Part


class Prefix:
    """Keeps the places that it was cut to."""

    def __init__(self, width: int, cuts: list[tuple[list[int], list[int], bool]]) -> None:
        self.width, self.cuts = width, cuts

    def of(self, prompts: torch.Tensor, rows: torch.Tensor, padded: bool) -> Prefix:
        self.cuts.append((prompts.tolist(), rows.tolist(), padded))
        return Prefix(len(rows) // len(prompts), self.cuts)


def part(lengths: list[int], width: int) -> tuple[Part, list[Any]]:
    """Prompts of these lengths with `width` completions each; row n has n as its position, number and newest token."""
    entries: Any = [SimpleNamespace(length=n) for n in lengths]
    numbers, cuts = torch.arange(len(lengths) * width), []
    prefix: Any = Prefix(width, cuts)
    found = Part(entries, prefix, (), numbers, numbers[None].double(), numbers[:, None], numbers[:, None].float())
    found.newest = numbers
    return found, cuts


def end(part: Part, *rows: tuple[int, int]) -> bool:
    """End these completions, of prompt and number, and drop what can go."""
    for prompt, row in rows:
        part.running[prompt][row] = False
    return part.keep_running()


def test_rows_leave_once_a_quarter_of_them_can() -> None:
    """Of 2 × 6 rows a quarter is three; every prompt keeps as many, so four are the first that go."""
    batch, cuts = part([5, 5], 6)
    assert end(batch, (0, 0))
    assert end(batch, (1, 3))  # two could leave, a sixth
    assert cuts == []
    assert batch.size == 12
    assert end(batch, (0, 5), (1, 4))
    assert cuts == [([0, 1], [1, 2, 3, 4, 6, 7, 8, 11], False)]
    assert batch.rows == [(0, [1, 2, 3, 4]), (1, [0, 1, 2, 5])]
    assert batch.newest.tolist() == batch.start.tolist() == batch.tokens[:, 0].tolist() == [1, 2, 3, 4, 6, 7, 8, 11]
    assert batch.uniform is not None
    assert batch.uniform[0].tolist() == [1, 2, 3, 4, 6, 7, 8, 11]


def test_an_ended_prompt_leaves_whole_and_padding_goes_with_the_longest() -> None:
    batch, cuts = part([5, 9, 5], 2)
    assert end(batch, (1, 0), (1, 1))
    assert cuts == [([0, 2], [0, 1, 4, 5], True)], "the prompts left are shorter than what they were padded to"
    assert batch.rows == [(0, [0, 1]), (2, [0, 1])]
    assert end(batch, (0, 1))
    assert len(cuts) == 1, "the other prompt needs both places"
    assert end(batch, (2, 0))
    assert cuts[1] == ([0, 1], [0, 3], True)
    assert batch.rows == [(0, [0]), (2, [1])]
    assert not end(batch, (0, 0), (2, 1))
    assert len(cuts) == 2
