"""The scorer against a table of verdicts: `scorer_cases.jsonl`, one case a line:

[problem type, answer, solution, options, question, strict score, compat score]
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ral.data.record import ProblemType
from ral.rewards.answers import (
    Mode,
    box_iou,
    extract_answer,
    judge,
    mean_relative_accuracy,
    parse_box,
    parse_choice,
    parse_number,
    relative_error,
    score_answer,
    unscorable,
)
from ral.rewards.functions import well_formed
from ral.rewards.mathematics import math_equal

CASES = [json.loads(line) for line in Path(__file__).with_name("scorer_cases.jsonl").read_text("utf-8").splitlines()]
KINDS: tuple[ProblemType, ...] = get_args(ProblemType)
#: Strings per example, and examples; RAL_EXAMPLES=1000 runs the 100,000 strings of a release.
STRINGS, EXAMPLES = 100, int(os.environ.get("RAL_EXAMPLES", "20"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_scores_as_the_table_says(kind: ProblemType) -> None:
    wrong = []
    for family, answer, solution, options, question, strict, compat in CASES:
        if family == kind:
            for mode, expected in (("strict", strict), ("compat", compat)):
                score = score_answer(answer, solution, kind, options=options, question=question, mode=mode)  # type: ignore[arg-type]
                if score != pytest.approx(expected, abs=6e-4):
                    wrong.append((mode, answer, solution, options, question, score, expected))
    assert not wrong


def test_the_table_has_sixty_cases_of_every_family() -> None:
    counts = Counter(case[0] for case in CASES)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 60


EXTRACTION: list[tuple[str, bool, str | None, str | None]] = [
    # text, think, strict, compat
    ("<think>t</think><answer>B</answer>", True, "B", "B"),
    ("<think>t</think>\n<answer>\n B \n</answer>\n", True, "B", "B"),
    ("<answer>B</answer>", True, "B", "B"),
    ("B", True, None, None),
    ("", True, None, None),
    ("<think>t</think>B", True, None, None),
    ("<answer></answer>", True, None, None),
    ("<answer> </answer>", True, None, None),
    ("<think>t</think><answer>A</answer><answer>B</answer>", True, "B", "A"),
    ("<think>it is <answer>A</answer></think><answer>B</answer>", True, "B", "A"),
    ("<think>it is <answer>A</answer></think>", True, None, "A"),
    ("<think>it is <answer>A</answer>", True, None, "A"),
    ("it is <answer>A</answer></think><answer>B</answer>", True, "B", "A"),
    ("<think>a<think>b</think><answer>A</answer></think><answer>B</answer>", True, "B", "A"),
    ("<answer>A</answer><think>t</think>", True, "A", "A"),
    ("<answer>A</answer><answer>B", True, "A", "A"),
    ("<answer>A<answer>B</answer>", True, "B", "A<answer>B"),
    ("<answer><answer>B</answer></answer>", True, "B", "<answer>B"),
    ("<Answer>B</Answer>", True, None, None),
    ("< answer >B</answer>", True, None, None),
    ("<answer>one\ntwo</answer>", True, "one\ntwo", "one\ntwo"),
    ("<answer>B</answer", True, None, None),
    ("<think>t</think><answer>B</answer> and more", True, "B", "B"),
    ("<think></think><answer>B</answer>", True, "B", "B"),
    ("</answer>B<answer>", True, None, None),
    (" B ", False, "B", "B"),
    ("", False, None, None),
    ("<answer>B</answer>", False, "B", "B"),
    ("<think>t</think>B", False, "B", "<think>t</think>B"),
    ("<think>t</think><answer>A</answer><answer>B</answer>", False, "B", "A"),
    ("a red car\n", False, "a red car", "a red car"),
]


@pytest.mark.parametrize(("text", "think", "strict", "compat"), EXTRACTION)
def test_the_answer_of_a_completion(text: str, think: bool, strict: str | None, compat: str | None) -> None:
    assert extract_answer(text, "strict", think) == strict
    assert extract_answer(text, "compat", think) == compat


def test_a_completion_without_an_answer_is_unparsed_and_scores_nothing() -> None:
    verdict = judge("The answer is B", "B", "multiple choice", think=True)
    assert (verdict.answer, verdict.score) == (None, 0.0)
    assert judge("The answer is B", "B", "multiple choice", think=False).score == 1.0


def test_compat_looks_for_math_in_the_whole_completion_first() -> None:
    text = "<think>so $42$</think>"
    assert judge(text, "42", "math", mode="compat").score == 1.0
    assert judge(text, "42", "math", mode="strict").score == 0.0


@pytest.mark.parametrize(
    ("value", "truth", "mra"), [("100", "100", 1.0), ("104", "100", 1.0), ("106", "100", 0.9), ("149", "100", 0.1),
                                ("150", "100", 0.0), ("x", "100", 0.0), ("0", "0", 1.0)],
)  # fmt: skip
def test_mean_relative_accuracy_counts_thresholds_from_half_to_95_percent(value: str, truth: str, mra: float) -> None:
    assert mean_relative_accuracy(value, truth) == pytest.approx(mra)
    assert mean_relative_accuracy(value, truth, mode="compat") == pytest.approx(mra)


def test_expressions_that_would_hang_or_fill_the_memory_are_only_unequal() -> None:
    math_equal("1", "1")  # the child is started before the clock
    start = perf_counter()
    assert not math_equal("$9^{9^{9^9}}$", "$3$", time_limit=2)
    assert not math_equal("x" * 10**6, "3")
    assert not math_equal("$" + "(" * 3000 + "$", "$3$", time_limit=2)
    assert perf_counter() - start < 60  # two limits of 2 s, and new processes on a busy machine
    assert math_equal("$\\frac{1}{2}$", "$0.5$")  # and the next question is answered


@pytest.mark.parametrize(
    ("solution", "kind", "options", "fine"),
    [("B", "multiple choice", ("x", "y"), True), ("C", "multiple choice", ("x", "y"), False),
     ("y", "multiple choice", ("x", "y"), True), ("3", "numerical", (), True), ("many", "numerical", (), False),
     ("  ", "free-form", (), False), ("[1, 2, 3, 4]", "box", (), True), ("[3, 4, 1, 2]", "box", (), False),
     ("红色", "free-form", (), True), ("\\frac{1}{2}", "math", (), True), ("x", "essay", (), False)],
)  # fmt: skip
def test_solutions_that_nothing_could_match_are_found(solution: str, kind: Any, options: Any, fine: bool) -> None:
    assert (unscorable(solution, kind, options) == "") == fine


# --- invariants

TAGS = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>"])
WORDS = st.sampled_from(
    [
        "A",
        "B.",
        "(C)",
        "1,000",
        "14%",
        "-3.5e2",
        "[1, 2, 3, 4]",
        "\\boxed{",
        "}",
        "$",
        "the answer is",
        " ",
        "\n",
        "é",
        "\0",
    ]
)
TEXTS = st.lists(TAGS | WORDS | st.text(max_size=8), max_size=8).map("".join)
BOXES = st.tuples(*[st.floats(0, 1e4)] * 2, *[st.floats(0.01, 1e4)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXTS, min_size=STRINGS, max_size=STRINGS), st.booleans(), st.sampled_from(get_args(Mode)))
def test_no_string_breaks_extraction_or_leaves_the_range(texts: list[str], think: bool, mode: Mode) -> None:
    for text, solution in zip(texts, texts[1:] + texts[:1], strict=True):
        well_formed(text, mode, think)
        for kind in KINDS:
            if kind != "math":  # in a process of its own; its strings are below
                assert 0.0 <= judge(text, solution, kind, options=texts[:3], mode=mode, think=think).score <= 1.0


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(TEXTS, TEXTS, st.sampled_from(get_args(Mode)))
def test_no_string_breaks_the_math_process(answer: str, solution: str, mode: Mode) -> None:
    assert score_answer(answer, solution, "math", mode=mode) in (0.0, 1.0)


@given(st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "{}.", "**{}**", "Answer: {}", "the answer is {}"]))
def test_a_letter_is_that_letter_in_every_dress(letter: str, dress: str) -> None:
    assert parse_choice(dress.format(letter), ("w", "x", "y", "z")) == letter


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators_change_nothing(number: int) -> None:
    for text in (f"{number}", f"{number:,}", f"{number}.", f"{number}.0"):
        parsed = parse_number(text)
        assert parsed is not None
        assert parsed.value == number


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_one_only_for_the_same_box(a: Any, b: Any) -> None:
    assert box_iou(a, b) == pytest.approx(box_iou(b, a))
    assert 0.0 <= box_iou(a, b) <= 1.0 + 1e-9
    assert box_iou(a, a) == pytest.approx(1.0)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_relative_error_is_zero_only_for_the_truth(value: float, truth: float) -> None:
    assert (relative_error(value, truth) == 0) == (value == truth) or abs(value - truth) < 1e-300


def test_near_is_not_equal_for_small_numbers() -> None:
    for answer, solution, right in [
        ("0.104", "0.1", 0),
        ("0.1004", "0.1", 1),
        ("100.4", "100", 0),
        ("100.004", "100", 1),
    ]:
        assert score_answer(answer, solution, "numerical") == right, answer


def test_a_box_with_a_corner_on_the_wrong_side_is_none() -> None:
    for text in ("[3, 2, 1, 4]", "[1, 4, 3, 2]", "[1, 2, 1, 4]", "[1, 2, 3, 2]"):
        assert parse_box(text) is None, text
    assert parse_box("[1, 2, 3, 4]") == (1, 2, 3, 4)


def test_nothing_earns_for_a_solution_of_0_in_compat_regression() -> None:
    """Video-R1 divides ε by ε."""
    assert [score_answer(answer, "0", "regression", mode="compat") for answer in ("0", "0.0", "1")] == [0.0, 0.0, 0.0]
    assert score_answer("0", "0", "regression") == 1.0
