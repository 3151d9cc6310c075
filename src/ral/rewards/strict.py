"""`strict`: scores as a careful person would."""

from __future__ import annotations

from ral.data.record import ProblemType
from ral.rewards.answer_phrases import without_leads
from ral.rewards.boxes import box_iou, parse_box
from ral.rewards.choice import parse_choice
from ral.rewards.mathematics import compare
from ral.rewards.numbers import in_common_unit, relative_error
from ral.rewards.overlap import pieces, word_accuracy
from ral.rewards.prose import free_form, same_answer
from ral.rewards.scorer import Expected, Scorer
from ral.rewards.text import same_text, typed


def multiple_choice(answer: str, of: Expected) -> float:
    """1 for the solution's letter or option. A solution that is neither ("yes", "red") is compared as text."""
    truth = parse_choice(of.solution, of.options)
    if truth is None:
        return float(same_answer(answer, of.solution))
    return float(parse_choice(answer, of.options) == truth)


def numerical(answer: str, of: Expected) -> float:
    """1 for a number equal as far as two decimals show it; a relative bound keeps 0.001 and 0.002 apart."""
    pair = in_common_unit(answer, of.solution, of.question)
    if pair is None:  # "14:30" is no number, but itself
        return float(any(sign.isdigit() for sign in of.solution) and same_text(answer, of.solution))
    return float(abs(pair[0] - pair[1]) <= 0.005 and relative_error(*pair) <= 0.01)


def regression(answer: str, of: Expected) -> float:
    """1 − relative error, not below 0."""
    pair = in_common_unit(answer, of.solution, of.question)
    return 0.0 if pair is None else 1.0 - min(1.0, relative_error(*pair))


def ocr(answer: str, of: Expected) -> float:
    """1 − word error rate; in scripts without spaces a character is a word."""
    return word_accuracy(pieces(typed(answer)), pieces(typed(of.solution)))


def prose(answer: str, of: Expected) -> float:
    """See `ral.rewards.prose.free_form`."""
    return free_form(answer, of.solution)


def mathematics(answer: str, of: Expected) -> float:
    """1 for an equal number, to a millionth, or an equal expression."""
    pair = None
    if not {"(", "[", "{,}"} & set(answer + of.solution):
        pair = in_common_unit(answer.replace("\\%", "%"), of.solution.replace("\\%", "%"), of.question)
    if pair is not None:
        return float(relative_error(*pair) <= 1e-6)
    expression, truth = _formula(answer), _formula(of.solution)
    return float(expression is not None and truth is not None and compare(expression, truth))


def _formula(text: str) -> str | None:
    """The one formula in `text`, marked as one for math-verify, which else reads only its first number."""
    if max(text.count("$") / 2, text.count(r"\boxed")) > 1:
        return None
    if "$" in text or r"\boxed" in text:
        return text
    text = without_leads(text.replace("−", "-").strip()).rstrip(". ")
    return f"${text}$" if text else None


def box(answer: str, of: Expected) -> float:
    """Intersection over union with the solution."""
    a, s = parse_box(answer), parse_box(of.solution)
    return 0.0 if a is None or s is None else box_iou(a, s)


SCORERS: dict[ProblemType, Scorer] = {
    "multiple choice": multiple_choice,
    "numerical": numerical,
    "OCR": ocr,
    "free-form": prose,
    "regression": regression,
    "math": mathematics,
    "box": box,
}
