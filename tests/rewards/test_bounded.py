"""No text makes a scorer raise, leave [0, 1], or take worse than linear time."""

from __future__ import annotations

from time import perf_counter
from typing import Any, get_args

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ral.data.record import ProblemType, Record
from ral.evaluate.tasks import BENCHMARKS
from ral.rewards import answers, functions, strict
from ral.rewards.answers import judge, score_answer
from ral.rewards.functions import build_rewards, score_group, well_formed
from ral.rewards.overlap import word_accuracy

KINDS: tuple[ProblemType, ...] = tuple(kind for kind in get_args(ProblemType) if kind != "math")
OPTIONS = ("A. red", "B. blue ball", "C. cat", "D. dog")

#: What a degenerate completion repeats.
UNITS = [
    " ", "\n", "answer ", "The answer is ", "<answer>", "</think><answer>", "<think>", "\\boxed{", "{", "$", "*", "1", "9,", "1 ", "9^", "-", "A ",
    "A. ", "(A)", "not ", "No, ", "or ", "blue ball ", "x", "é", "½", "²", "红", "\u200b", "\0", "\ud800", "\\frac{1}{", "[1,", "(", "is ", "one ", "U.",
]  # fmt: skip


def seconds(kind: ProblemType, text: str) -> float:
    """The faster of two, as the machine may be busy with something else."""
    times = []
    for _ in range(2):
        start = perf_counter()
        for mode in ("strict", "compat"):
            judge(f"<think>t</think><answer>{text}x</answer>", "B", kind, options=OPTIONS, mode=mode)
            judge(text, "B 5 km", kind, mode=mode, think=False)
            well_formed(text, mode)
        times.append(perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_times_the_text_takes_about_ten_times_as_long(kind: ProblemType) -> None:
    slow = {}
    for unit in UNITS:
        small, large = (seconds(kind, unit * (size // len(unit))) for size in (1_500, 15_000))
        if large > 1.0 and large > 35 * small:  # the square would be 100 times, and seconds
            slow[unit] = (small, large)
    assert not slow


def test_two_long_texts_are_compared_in_time() -> None:
    """The table of a longest common subsequence would have 1.6 · 10⁹ cells."""
    text = "some words that are not always the same " * 2_500
    start = perf_counter()
    assert 0 < score_answer(text, text[7:-9] + " end", "free-form") < 1
    assert 0 < score_answer(text, text[7:-9] + " end", "OCR", mode="compat") < 1
    assert perf_counter() - start < 20


HUGE = [
    "1e999999999",
    "9**9**9",
    "9^9^9^9",
    "1" * 5_000,
    "-" + "9" * 400,
    "1/0",
    "10^999",
    "0^-1",
    "1e308 × 10^300",
    "\\frac{1}{0}",
    "٩" * 400,
]


@pytest.mark.parametrize("mode", ["strict", "compat"])
@pytest.mark.parametrize("text", HUGE)
def test_huge_numbers_are_only_wrong(text: str, mode: Any) -> None:
    for kind in KINDS:
        verdict = judge(text, "5", kind, mode=mode, think=False)
        assert (verdict.score, verdict.failed) == (0.0, False), kind


PIECES = st.sampled_from(
    [*UNITS, *HUGE, "5 million", "B", "14%", "wait", "答案:", "</answer>", "[1, 2, 3, 4]", "10^2", "yes", "/"]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(PIECES | st.text(max_size=6), max_size=8),
    st.text(max_size=12),
    st.booleans(),
    st.sampled_from(["strict", "compat"]),
)
def test_judge_never_fails(pieces: list[str], solution: str, think: bool, mode: Any) -> None:
    text = "".join(pieces)
    for kind in KINDS:
        for right in (solution, "B", "5 km"):
            verdict = judge(text, right, kind, options=OPTIONS, mode=mode, think=think)
            assert 0.0 <= verdict.score <= 1.0
            assert not verdict.failed


@pytest.mark.parametrize("unit", ["answer ", "The answer is ", "(", "A. B. "])
def test_repetition_neither_ends_an_evaluation_nor_a_run(unit: str) -> None:
    item = Record("1", "q", "B", problem_type="multiple choice", options=("A. x", "B. y"))
    assert BENCHMARKS["videomme"].score(item, unit * 1000, mode="strict", think=False) is None
    columns = {"solution": ["B"], "problem_type": ["multiple choice"], "options": [("A. x", "B. y")]}
    scored = score_group(build_rewards(), ["?"], [f"<think>t</think><answer>{unit * 1000}</answer>"], columns)
    assert (scored.total, scored.failed) == (pytest.approx([0.1]), 0)


def test_a_scorer_that_fails_scores_nothing_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(answer: str, of: Any) -> float:
        if answer == "bad":
            raise RecursionError
        return 1.0

    monkeypatch.setitem(strict.SCORERS, "numerical", fails)
    assert judge("bad", "5", "numerical", think=False) == answers.Verdict("bad", 0.0, failed=True)
    assert score_answer("bad", "5", "numerical") == 0.0
    columns = {"solution": ["5"] * 3, "problem_type": ["numerical"] * 3}
    scored = score_group(build_rewards(["accuracy"], think=False), ["?"] * 3, ["5", "bad", "bad"], columns)
    assert (scored.total, scored.failed) == ([1.0, 0.0, 0.0], 2)


def test_a_group_of_slow_completions_ends_before_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "SCORING_SHARE", -1.0)
    columns = {"solution": ["5"] * 2, "problem_type": ["numerical"] * 2}
    scored = score_group(build_rewards(["accuracy"], think=False), ["?"] * 2, ["5", "5"], columns)
    assert (scored.total, scored.failed) == ([0.0, 0.0], 2)


def test_a_comparison_that_takes_too_long_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(answer: str, solution: str) -> bool:
        raise TimeoutError

    monkeypatch.setattr(strict, "compare", too_long)
    verdict = judge("$x^{9^{9}}$", "$3$", "math", think=False)
    assert (verdict.score, verdict.failed) == (0.0, True)


WORDS = st.lists(
    st.sampled_from(["red", "ball", "balls", "a", "running", "3.5", "it's", "no", "Red", "x-ray"]), max_size=12
).map(" ".join)


@given(WORDS, WORDS)
def test_overlaps_are_those_of_the_reference_libraries(answer: str, solution: str) -> None:
    """rouge-score's mean F with stems, and jiwer's word error rate, which Video-R1's rewards are made of."""
    scores = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(solution, answer)
    expected = sum(score.fmeasure for score in scores.values()) / 3
    assert score_answer(answer, solution, "free-form", mode="compat") == pytest.approx(expected)
    if solution:
        assert word_accuracy(answer.split(), solution.split()) == pytest.approx(
            max(0.0, 1 - jiwer.wer(solution, answer))
        )
