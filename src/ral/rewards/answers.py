"""Extracts and scores the answer of a completion, for rewards and evaluation alike.

Each mode is a module. `compat` reproduces published rewards with their quirks. `strict` scores as a careful person would. For every
text, `judge` returns a score in [0, 1] in linear time (math: within `mathematics.TIME_LIMIT`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ral.data.record import ProblemType
from ral.errors import WorkerError
from ral.rewards import compat, strict
from ral.rewards.boxes import box_iou, parse_box
from ral.rewards.choice import option_texts, parse_choice
from ral.rewards.extract import Mode, extract_answer
from ral.rewards.numbers import Number, asks_percent, in_common_unit, parse_number, relative_error
from ral.rewards.scorer import Expected, Scorer
from ral.rewards.text import clean, same_text

__all__ = [
    "SCORERS", "Mode", "Number", "Verdict", "asks_percent", "box_iou", "clean", "extract_answer", "judge", "mean_relative_accuracy",
    "option_texts", "parse_box", "parse_choice", "parse_number", "relative_error", "same_text", "score_answer", "unscorable",
]  # fmt: skip

logger = logging.getLogger(__name__)

#: A problem type is a line in each of the two.
SCORERS: Mapping[Mode, Mapping[ProblemType, Scorer]] = {"strict": strict.SCORERS, "compat": compat.SCORERS}


@dataclass(frozen=True)
class Verdict:
    """The `answer` found in a completion (None: no answer could be found) and its `score` in [0, 1].

    `failed`: the scorer raised an error or ran out of time, which is logged; the score is 0 then.
    """

    answer: str | None
    score: float
    failed: bool = False


def score_answer(
    answer: str,
    solution: str,
    problem_type: ProblemType,
    *,
    options: Sequence[str] = (),
    question: str = "",
    mode: Mode = "strict",
) -> float:
    """Score a bare `answer` in [0, 1]. `question` only tells if it asks for per cent.

    Raises `KeyError` for an unknown problem type and `WorkerError` where math cannot be compared at all.
    """
    return _scored(answer, answer, Expected(solution, options, question), problem_type, mode).score


def judge(
    completion: str,
    solution: str,
    problem_type: ProblemType,
    *,
    options: Sequence[str] = (),
    question: str = "",
    mode: Mode = "strict",
    think: bool = True,
) -> Verdict:
    """Extract the answer of a `completion` and score it; a completion without an answer scores 0.

    In `compat`, math is looked for in the whole completion, as R1-V does. A scorer that fails scores 0 and says so.
    Raises `KeyError` for an unknown problem type and `WorkerError` where math cannot be compared at all.
    """
    answer = extract_answer(completion, mode, think)
    scored = completion if mode == "compat" and problem_type in compat.OF_COMPLETION else answer
    return _scored(answer, scored, Expected(solution, options, question), problem_type, mode)


def _scored(answer: str | None, text: str | None, of: Expected, problem_type: ProblemType, mode: Mode) -> Verdict:
    """Score `text`, which gave the `answer`; 0 if the scorer fails."""
    scorer = SCORERS[mode][problem_type]
    if text is None:
        return Verdict(answer, 0.0)
    try:
        return Verdict(answer, scorer(text, of))
    except WorkerError:
        raise
    except TimeoutError as error:
        logger.warning("the scorer of %s: %s on %.200r for %.200r; scored 0", problem_type, error, text, of.solution)
        return Verdict(answer, 0.0, failed=True)
    except Exception:
        logger.exception("the scorer of %s failed on %.200r for %.200r; scored 0", problem_type, text, of.solution)
        return Verdict(answer, 0.0, failed=True)


def mean_relative_accuracy(answer: str, solution: str, question: str = "", mode: Mode = "strict") -> float:
    """Mean over θ = 0.50, 0.55, …, 0.95 of [relative error < 1 − θ]: Video-R1's regression metric at evaluation."""
    if mode == "strict":
        pair = in_common_unit(answer, solution, question)
    else:
        a, s = compat.number(answer), compat.number(solution)
        pair = None if a is None or s is None else (a, s)
    if pair is None:
        return 0.0
    error = relative_error(*pair)
    return sum(error < (50 - 5 * i) / 100 for i in range(10)) / 10


def unscorable(solution: str, problem_type: ProblemType, options: Sequence[str] = (), mode: Mode = "strict") -> str:
    """The reason why no answer can match this solution, or "" if one can: the check before training."""
    if not solution.strip():
        return "the solution is empty"
    if problem_type == "multiple choice" and options and parse_choice(solution, options) is None:
        return f"the solution {solution!r} is none of the {len(options)} options"
    if problem_type not in SCORERS[mode]:
        return f"the problem type {problem_type!r} is unknown; known are {', '.join(SCORERS[mode])}"
    if score_answer(solution.strip(), solution, problem_type, options=options, mode=mode) <= 0:
        return f"the solution {solution!r} cannot be read as {problem_type}: not even itself would score"
    return ""
