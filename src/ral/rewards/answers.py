"""What a completion answers, and how right that is: the one scorer of rewards and of evaluation.

Two modes. `compat` reproduces what Video-R1's rewards do, quirks included ("B." is not B, "1,000" is not
1000), so that results can be compared with the literature. `strict` is what a careful person would call
right.

A completion of a thinking model answers in `<answer>…</answer>`; `strict` takes the last complete one that
stands outside the thinking, `compat` the first one anywhere. A completion without thinking is the answer
itself.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jiwer
from rouge_score.rouge_scorer import RougeScorer

from ral.data.record import ProblemType
from ral.rewards.mathematics import math_equal

Mode = Literal["strict", "compat"]

_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_INNERMOST_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")


@dataclass(frozen=True)
class Verdict:
    """The `answer` found in a completion (None: no answer could be found) and its `score` in [0, 1]."""

    answer: str | None
    score: float


# ---------------------------------------------------------------------------------------------- extraction


def extract_answer(text: str, mode: Mode = "strict", think: bool = True) -> str | None:
    """The answer that `text` gives, without tags and outer white space; None if it gives none.

    `think=True` expects `<answer>…</answer>`: `compat` takes the first (Video-R1), `strict` the last complete
    one outside `<think>…</think>`. `think=False` expects the bare answer, and still looks into tags where
    there are some.
    """
    if mode == "compat":
        match = _ANSWER.search(text)
        answer = match[1] if match else "" if think else text
    else:
        said = _outside_thinking(text)
        bodies = _INNERMOST_ANSWER.findall(said)
        answer = bodies[-1] if bodies else "" if think else said
    return answer.strip() or None


def _outside_thinking(text: str) -> str:
    """`text` without its thinking: balanced blocks, an opening that never closes, and what leads to a stray close."""
    kept, depth, start = "", 0, 0
    for tag in _THINK_TAG.finditer(text):
        if depth == 0:
            kept += text[start : tag.start()]
        if tag[0] == "<think>":
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept = ""  # the prompt had opened the thinking
        start = tag.end()
    return kept + text[start:] if depth == 0 else kept


# ------------------------------------------------------------------------------------------- normalisation

_WRAPPERS = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_LEAD = re.compile(
    r"(?:the\s+)?(?:final\s+|correct\s+|best\s+)?(?:answer|option|choice)\b\s*(?:is\b)?\s*[:=]?\s*(?:option\b)?\s*",
    re.IGNORECASE,
)
_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "−": "-", "–": "-"})


def clean(text: str) -> str:
    """`text` as it would be read aloud: NFKC, plain quotes and minus, one space, no markup around the whole."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    text = _WRAPPERS.sub(r"\1", text)
    return " ".join(text.split()).strip("*`$\"' ")


def _typed(text: str) -> str:
    """`text` letter by letter, but for how it is encoded and for quotes or markup around the whole."""
    text = " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).split())
    match = re.fullmatch(r"([\"'`]|\*\*)(.+)\1", text)
    return match[2] if match else text


def same_text(a: str, b: str) -> bool:
    """Whether two short texts say the same, up to case, outer punctuation and a leading article."""
    return _plain(a) == _plain(b)


def _plain(text: str) -> str:
    text = clean(text).casefold().strip(" .,;:!?\"'()[]")
    return re.sub(r"^(?:a|an|the) ", "", text)


# ------------------------------------------------------------------------------------------------- choices

_LABELLED = re.compile(r"\(?([A-Z])[.):]\)?\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,]?")
_LETTER_AND_TEXT = re.compile(r"[(\[]?([A-Z])(?:[)\].:]+|\s+-)\s+(.+)", re.DOTALL)
_OTHER_LETTER = re.compile(r"\b(?:or|and)\s+\(?[A-Z]\b|\([A-Z]\)|\b[A-Z][.)](?:\s|$)")


def option_texts(options: Sequence[str]) -> dict[str, str]:
    """Letter → text of each option: the labels they carry ("A. red", "(A) red"), else by position."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    labelled = [_LABELLED.fullmatch(clean(option)) for option in options]
    if options and all(m and m[1] == letter for m, letter in zip(labelled, letters, strict=True)):
        return {m[1]: m[2] for m in labelled if m}
    return dict(zip(letters, options, strict=True))


def parse_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter that `text` chooses: "B", "b", "(B)", "B.", "B. red", "The answer is B", or the option's own text.

    None for a letter outside the options, more than one letter, or a letter with the text of another option.
    """
    texts = option_texts(options)
    text = clean(text)
    named = {letter for letter, option in texts.items() if same_text(text, option)}
    named |= {letter for letter, option in zip(texts, options, strict=True) if same_text(text, option)}
    if len(named) == 1:
        return named.pop()
    lead = _LEAD.match(text)
    bare = clean(text[lead.end() :]) if lead else text
    if match := _LETTER.fullmatch(bare):
        letter = match[1].upper()
    elif match := _LETTER_AND_TEXT.fullmatch(bare):
        letter, rest = match[1], match[2]
        claimed = {other for other, option in texts.items() if same_text(rest, option)}
        if (claimed and letter not in claimed) or (not claimed and _OTHER_LETTER.search(rest)):
            return None
    else:
        return parse_choice(bare, options) if lead and bare and bare != text else None
    return letter if not texts or letter in texts else None


# ------------------------------------------------------------------------------------------------- numbers

_NUMBER = re.compile(
    r"(?:[a-zA-Z]?\s*[=≈~])?\s*(?P<sign>[-+]?)\s*[$€£¥]?\s*(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?P<exp>[eE][-+]?\d{1,3})?"
    r"(?:\s*/\s*(?P<over>\d+(?:\.\d+)?))?\s*(?P<unit>(?:%|[^\W\d_]|°)[^\s\d]*(?:\s[^\s\d]+)?)?\.?"
)
_NOT_A_UNIT = re.compile(r"\b(?:or|and|to|not|no|but|than)\b", re.IGNORECASE)
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_PERCENT_ASKED = re.compile(r"\b(?:in|as an?|what|which|how many|the)\s+(?:%|percent)", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """A finite `value` with the `unit` written after it ("" if none, "%" for per cent)."""

    value: float
    unit: str = ""


def parse_number(text: str) -> Number | None:
    """The number that `text` states: "1,000", "-3.5e2", "$5", "3/4", "14 %", "5 km", "seven" (up to twelve); or None."""
    text = clean(text)
    if lead := _LEAD.match(text):
        text = clean(text[lead.end() :])
    if text.casefold().rstrip(".") in _WORDS:
        return Number(float(_WORDS.index(text.casefold().rstrip("."))))
    match = _NUMBER.fullmatch(text)
    if match is None or _NOT_A_UNIT.search(match["unit"] or ""):
        return None
    over = float(match["over"] or 1)
    value = float(match["sign"] + match["digits"].replace(",", "") + (match["exp"] or ""))
    if over == 0 or not math.isfinite(value / over):
        return None
    unit = (match["unit"] or "").casefold().rstrip(".")
    return Number(value / over, "%" if unit in ("%", "percent", "per cent") else unit)


def asks_percent(question: str) -> bool:
    """Whether the question wants its number in per cent."""
    return bool(_PERCENT_ASKED.search(question))


def _in_common_unit(answer: str, solution: str, question: str) -> tuple[float, float] | None:
    """The two numbers made comparable: "14%" is 14 where per cent is asked for, else 0.14; None if they cannot be."""
    a, s = parse_number(answer), parse_number(solution)
    if a is None or s is None:
        return None
    if "%" in (a.unit, s.unit):
        if s.unit == "%" or asks_percent(question):
            return (a.value, s.value) if a.unit in ("", "%") else None
        return (a.value / 100, s.value)
    if a.unit and s.unit and a.unit.rstrip("s") != s.unit.rstrip("s"):
        return None
    return a.value, s.value


def _compat_number(text: str) -> float | None:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def relative_error(value: float, truth: float) -> float:
    """|value − truth| / |truth|; at truth 0 it is 0 for an exact value and infinite for any other."""
    if value == truth:
        return 0.0
    return abs(value - truth) / abs(truth) if truth else math.inf


# --------------------------------------------------------------------------------------------------- boxes

_NUMERAL = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?!\w)")  # not the digits of names such as x0 and bbox_2d
_FOUR_NUMERALS = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([r"[-+]?\d+(?:\.\d+)?"] * 4) + r"\s*[\])]")


def parse_box(text: str, mode: Mode = "strict") -> tuple[float, float, float, float] | None:
    """The box `[x0, y0, x1, y1]` in `text`; `strict` wants exactly one, `compat` takes the first. None if empty."""
    found = [match[0] for match in _FOUR_NUMERALS.finditer(text)]
    if not found and len(_NUMERAL.findall(text)) == 4:
        found = [text]
    if not found or (mode == "strict" and len(found) > 1):
        return None
    x0, y0, x1, y1 = map(float, _NUMERAL.findall(found[0]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < 1e9 else None


def box_iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes `(x0, y0, x1, y1)` with positive area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


# -------------------------------------------------------------------------------------------------- scores
# Each takes (answer, solution, options, question, mode) and returns a score in [0, 1].

Scorer = Callable[[str, str, Sequence[str], str, Mode], float]


def _multiple_choice(answer: str, solution: str, options: Sequence[str], question: str, mode: Mode) -> float:
    if mode == "compat":
        return float(answer.strip() == solution.strip())
    truth = parse_choice(solution, options)
    if truth is None:  # "yes", "red": no letters and no options
        return float(same_text(answer, solution))
    return float(parse_choice(answer, options) == truth)


def _numerical(answer: str, solution: str, options: Sequence[str], question: str, mode: Mode) -> float:
    if mode == "compat":
        if any(c in answer for c in ".,") != any(c in solution for c in ".,"):
            return 0.0
        a, s = _compat_number(answer), _compat_number(solution)
        return float(a is not None and s is not None and round(a, 2) == round(s, 2))
    pair = _in_common_unit(answer, solution, question)
    # Equal as far as two decimals show it; the second bound keeps 0.001 and 0.002 apart.
    return float(pair is not None and abs(pair[0] - pair[1]) <= 0.005 and relative_error(*pair) <= 0.01)


def _regression(answer: str, solution: str, options: Sequence[str], question: str, mode: Mode) -> float:
    pair = _regression_pair(answer, solution, question, mode)
    return 0.0 if pair is None else 1.0 - min(1.0, relative_error(*pair))


def _regression_pair(answer: str, solution: str, question: str, mode: Mode) -> tuple[float, float] | None:
    if mode == "strict":
        return _in_common_unit(answer, solution, question)
    a, s = _compat_number(answer), _compat_number(solution)
    return None if a is None or s is None else (a, s)


def mean_relative_accuracy(answer: str, solution: str, question: str = "", mode: Mode = "strict") -> float:
    """Mean over θ = 0.50, 0.55, …, 0.95 of [relative error < 1 − θ]: Video-R1's regression metric at evaluation."""
    pair = _regression_pair(answer, solution, question, mode)
    if pair is None:
        return 0.0
    error = relative_error(*pair)
    return sum(error < (50 - 5 * i) / 100 for i in range(10)) / 10


def _ocr(answer: str, solution: str, options: Sequence[str], question: str, mode: Mode) -> float:
    if mode == "strict":
        answer, solution = _typed(answer), _typed(solution)
    reference, hypothesis = " ".join(solution.split()), " ".join(answer.split())
    if not reference:
        return float(not hypothesis)
    return min(1.0, max(0.0, 1.0 - jiwer.wer(reference, hypothesis)))


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def _free_form(answer: str, solution: str, options: Sequence[str], question: str, mode: Mode) -> float:
    if mode == "strict" and same_text(answer, solution):
        return 1.0  # ROUGE reads only a–z and 0–9, and one word has no ROUGE-2
    scores = _rouge().score(solution, answer)
    kinds = ["rouge1", "rouge2", "rougeL"]
    if mode == "strict" and 1 in (len(answer.split()), len(solution.split())):
        kinds.remove("rouge2")
    return sum(scores[kind].fmeasure for kind in kinds) / len(kinds)


def _math(answer: str, solution: str, options: Sequence[str], question: str, mode: Mode) -> float:
    if mode == "compat":
        return float(answer.strip() == solution.strip() or math_equal(answer, solution))
    pair = _in_common_unit(answer.replace("\\%", "%"), solution.replace("\\%", "%"), question)
    if pair is not None:
        return float(relative_error(*pair) <= 1e-6)
    expression, truth = _formula(answer), _formula(solution)
    return float(expression is not None and truth is not None and math_equal(expression, truth))


def _formula(text: str) -> str | None:
    """The one formula in `text`, marked as one for math-verify, which else reads only its first number."""
    if max(text.count("$") / 2, text.count(r"\boxed")) > 1:
        return None
    if "$" in text or r"\boxed" in text:
        return text
    text = text.replace("−", "-").strip()
    lead = _LEAD.match(text)
    text = (text[lead.end() :] if lead else text).rstrip(". ")
    return f"${text}$" if text else None


def _box(answer: str, solution: str, options: Sequence[str], question: str, mode: Mode) -> float:
    a, s = parse_box(answer, mode), parse_box(solution, mode)
    return 0.0 if a is None or s is None else box_iou(a, s)


SCORERS: dict[ProblemType, Scorer] = {
    "multiple choice": _multiple_choice,
    "numerical": _numerical,
    "OCR": _ocr,
    "free-form": _free_form,
    "regression": _regression,
    "math": _math,
    "box": _box,
}


def score_answer(
    answer: str,
    solution: str,
    problem_type: ProblemType,
    *,
    options: Sequence[str] = (),
    question: str = "",
    mode: Mode = "strict",
) -> float:
    """How right a bare `answer` is, in [0, 1]. `question` is read only for whether it asks in per cent.

    Raises `KeyError` for an unknown problem type.
    """
    return SCORERS[problem_type](answer, solution, options, question, mode)


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

    In `compat`, math is looked for in the whole completion before its answer, as R1-V does.
    """
    answer = extract_answer(completion, mode, think)
    if mode == "compat" and problem_type == "math" and math_equal(completion, solution):
        return Verdict(answer, 1.0)
    if answer is None:
        return Verdict(None, 0.0)
    return Verdict(answer, score_answer(answer, solution, problem_type, options=options, question=question, mode=mode))


def unscorable(solution: str, problem_type: ProblemType, options: Sequence[str] = (), mode: Mode = "strict") -> str:
    """Why no answer to this solution could ever be right, or "" if one can: the check before training."""
    if not solution.strip():
        return "the solution is empty"
    if problem_type == "multiple choice" and options and parse_choice(solution, options) is None:
        return f"the solution {solution!r} is none of the {len(options)} options"
    if problem_type not in SCORERS:
        return f"the problem type {problem_type!r} is unknown; known are {', '.join(SCORERS)}"
    if score_answer(solution.strip(), solution, problem_type, options=options, mode=mode) <= 0:
        return f"the solution {solution!r} cannot be read as {problem_type}: not even itself would score"
    return ""
