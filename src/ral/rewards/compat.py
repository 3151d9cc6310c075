"""`compat`: scores as published rewards do, with their quirks ("B." is not B, "1,000" is not 1000), for comparable results.

Video-R1 for the kinds it has, R1-V for math, and the overlap that VLM-R1 pays for boxes. Where these pay what no person
would, docs/evaluation.md names the difference.
"""

from __future__ import annotations

import math

from ral.data.record import ProblemType
from ral.rewards.boxes import box_iou, parse_box
from ral.rewards.extract import first_answer
from ral.rewards.mathematics import compare
from ral.rewards.overlap import rouge, rouge_tokens, word_accuracy
from ral.rewards.scorer import Expected, Scorer

_EPSILON = 1e-9


def multiple_choice(answer: str, of: Expected) -> float:
    return float(answer.strip() == of.solution.strip())


def number(text: str) -> float | None:
    """A finite number without its commas, as Video-R1 reads one; NaN and infinity, which earn rewards there, are none."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numerical(answer: str, of: Expected) -> float:
    """Equal at two decimals, and both with or both without a period or comma."""
    if any(sign in answer for sign in ".,") != any(sign in of.solution for sign in ".,"):
        return 0.0
    a, s = number(answer), number(of.solution)
    return float(a is not None and s is not None and round(a, 2) == round(s, 2))


def regression(answer: str, of: Expected) -> float:
    """1 − (|a − s| + ε) / (|s| + ε): nothing is right for a solution of 0, not even 0."""
    a, s = number(answer), number(of.solution)
    if a is None or s is None:
        return 0.0
    return 1.0 - min(1.0, (abs(a - s) + _EPSILON) / (abs(s) + _EPSILON))


def ocr(answer: str, of: Expected) -> float:
    """1 − word error rate."""
    return word_accuracy(answer.split(), of.solution.split())


def free_form(answer: str, of: Expected) -> float:
    """The mean F of ROUGE-1, ROUGE-2 and ROUGE-L over stems of a–z and 0–9."""
    return rouge(rouge_tokens(answer), rouge_tokens(of.solution))


def mathematics(text: str, of: Expected) -> float:
    """R1-V: some expression of the *whole* completion equals the solution for math-verify, which it gives the two in this
    order; else the answer, in tags on one line or the whole, is the solution's text."""
    bodies = (first_answer(line) for line in text.split("\n"))
    if next((body for body in bodies if body is not None), text).strip() == of.solution.strip():
        return 1.0
    return float(compare(of.solution, text))


def box(answer: str, of: Expected) -> float:
    """Intersection over union of the first box with the solution."""
    a, s = parse_box(answer, "compat"), parse_box(of.solution, "compat")
    return 0.0 if a is None or s is None else box_iou(a, s)


SCORERS: dict[ProblemType, Scorer] = {
    "multiple choice": multiple_choice,
    "numerical": numerical,
    "OCR": ocr,
    "free-form": free_form,
    "regression": regression,
    "math": mathematics,
    "box": box,
}

#: Kinds that are scored by the whole completion, not by the answer in it.
OF_COMPLETION = frozenset({"math"})
