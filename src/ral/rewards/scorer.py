"""The type of all scorers, and `Expected`, which they compare an answer with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """The `solution` of a question, its `options`, and the `question` itself, which only tells if it asks for per cent."""

    solution: str
    options: Sequence[str] = ()
    question: str = ""


#: How right an answer is, in [0, 1].
Scorer = Callable[[str, Expected], float]
