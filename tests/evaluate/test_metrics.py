from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.data.record import Record
from ral.evaluate import metrics
from ral.evaluate.tasks import BENCHMARKS

OPTIONS = ("A. red", "B. blue ball", "C. cat", "D. dog")
TEXTS = {"A": "red", "B": "blue ball", "C": "cat", "D": "dog"}


def record(solution: str, **extra) -> Record:
    return Record("1", "What is it?", solution, extra=extra)


# Letters as lmms-eval's own functions read them, at commit 75571cfe (0.7), in the order of READERS: vstar_bench, blink,
# mcq_extract, mmmu_mcq_utils, longvideobench. None is an empty result there, and a random letter in the last two.
READERS = ["searched_letter", "leading_letter", "ranked_letter", "mmmu_letter", "first_capital"]
READINGS = [
    ("B", "B", "B", "B", "B", "B"),
    ("(B)", "B", "B", "B", "B", "B"),
    ("B.", "B", "B", "B", "B", "B"),
    ("b", "B", "B", None, None, None),
    ("B. blue ball", "B", "B", "B", "B", "B"),
    ("The answer is B", "B", "T", "B", "B", "B"),
    ("The answer is (B).", "B", "T", "B", "B", "B"),
    ("Answer: C", "A", "A", "C", "C", "A"),
    ("blue ball", "B", "B", None, None, None),
    ("A or B", "A", "A", "A", "B", "A"),
    ("Because it is D", "B", "B", "D", "D", "B"),
    ("I can see that it is a blue ball there", "A", "I", None, "B", None),
    ("none", None, "N", None, None, None),
    ("E", None, "E", None, None, "E"),
]


@pytest.mark.parametrize(("answer", "expected"), [(row[0], row[1:]) for row in READINGS])
def test_letters_are_read_as_in_the_reference(answer, expected):
    assert tuple(getattr(metrics, reader)(answer, TEXTS) for reader in READERS) == expected


@pytest.mark.parametrize(
    ("answer", "letter"),
    # As `_extract_answer_letter` of lmms-eval 0.7.3's BLINK reads them.
    [
        ("B", "B"),
        ("b", "B"),
        ("(C).", "C"),
        ("The correct answer is (B).", "B"),
        ("I think the answer is C because of the A", "C"),
        ("Answer: A, no, the answer is D", "D"),
        ("(A) is wrong, so (B)", "B"),
        ("The answer", None),
        ("all", "A"),
        ("E", None),
        ("B\nanswer: C", "B"),
    ],
)
def test_blink_takes_what_is_announced(answer, letter):
    assert metrics.announced_letter(answer, TEXTS) == letter


def test_mmmu_pro_parses_nothing_in_its_vision_track():
    score = BENCHMARKS["mmmu-pro"].metric
    vision, standard = (record("B", track=track, choices=OPTIONS) for track in ("vision", "standard"))
    assert [score(answer, vision, "compat") for answer in ("B", "C", "B.", "The answer is (B)")] == [
        1.0,
        0.0,
        None,
        None,
    ]
    assert [score(answer, standard, "compat") for answer in ("B", "B.", "The answer is (B)")] == [1.0, 1.0, 1.0]
    assert score("The answer is (B)", vision, "strict") == 1.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    # The last of one form counts, wherever else its letter or a lesser form stands.
    [
        ("not (B) here, but (A), no, (B) or (A)", "A"),
        ("I say (A) or (C) or (A)", "A"),
        ("(C) then (A) then (B), the cat", "B"),
        ("x: A. B. A. is it", "A"),
    ],
)
def test_ranked_letters_count_from_the_end(answer, letter):
    assert metrics.ranked_letter(answer, TEXTS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("B. blue", "B"), (" c. cat", None), ("c", "C"), ("(B)", None), ("The answer is B", None)],
)
def test_muirbench_takes_a_leading_letter_with_a_period_or_the_letter_alone(answer, letter):
    assert metrics.letter_with_period(answer, TEXTS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("(B) blue", "B"), ("b. blue", "B"), ("it is a cat", "A"), ("Because", None), ("B.C", "B"), ("(D).", "D")],
)
def test_mvbench_takes_the_first_letter_alone(answer, letter):
    assert metrics.lone_letter(answer, TEXTS) == letter


def test_strict_reads_all_letter_benchmarks_alike():
    tasks = ["vstar", "mmmu-pro", "muirbench", "blink", "cv-bench", "longvideobench", "nextqa", "videomme", "videommmu"]
    right = Record("1", "?", "B", options=OPTIONS)
    for name in [*tasks, "lvbench", "mvbench"]:
        metric = BENCHMARKS[name].metric
        for answer in ("B", "(b)", "B.", "blue ball", "The answer is B"):
            assert metric(answer, right, "strict") == 1.0, (name, answer)
        assert metric("Answer: C", right, "strict") == 0.0
        assert metric("A or B", right, "strict") is None
        assert metric("E", right, "strict") is None
        assert metric("B", right, "compat") == 1.0
        assert metric("C", right, "compat") == 0.0
        assert metric("E", right, "compat") is None, name


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Yes", 1),
        ("yes.", 1),
        ("Y", 1),
        (" Yes, it is", 1),
        ("No", 0),
        ("n", 0),
        ("not sure", 0),
        ("1 no", 0),
        ("a: yes", None),
        ("It is, yes", None),
        ("x", None),
    ],
)
def test_mme_reads_four_characters(answer, score):
    assert metrics.yes_no(answer, record("Yes"), "compat") == score


@pytest.mark.parametrize(
    ("answer", "solution", "score"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.01", "100", 0),
        ("94.99", "100", 0),
        ("-95", "-100", 1),
        ("1.04", "1", 1),
        ("1.05", "1", 0),  # 0.05 in floating point is passed by 4e-17, there as here
        ("14%", "0.14", 1),
        ("14", "14%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("1,000", "1000", 0),
        ("Yes", "yes", 1),
        ("Yes.", "yes", 0),
        ("nan", "5", 0),
        ("5", "nan", 0),
    ],
)
def test_chartqa_tolerance(answer, solution, score):
    assert metrics.relaxed(answer, record(solution), "compat") == score


@pytest.mark.parametrize(
    ("matches", "score"),
    # With k of 10 annotators agreeing: (k·min(1, (k−1)/3) + (10−k)·min(1, k/3)) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vizwiz_counts_annotators_leaving_one_out(matches, score):
    answers = ["coca cola"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert metrics.vqa_accuracy("Coca-Cola", record("", answers=answers), "compat") == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "normal"),
    # As EvalAIAnswerProcessor of lmms-eval gives them.
    [
        ("The Red, car!", "red car"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("John's", "john 's"),
        ("3.50.", "3.50"),
        ("1,000", "1000"),
        ("coca-cola", "coca cola"),
        ("a- b", "b"),
        ("what?\nno", "what no"),
    ],
)
def test_vqa_normalisation(text, normal):
    assert metrics.normalise_vqa(text) == normal


def test_the_sign_of_equality_leads_to_a_part_in_the_last_line_alone():
    """Of "red = blue" the last line says blue; a line before it says all of that."""
    line = "the answer is red = blue"
    before = [metrics.mmmu_open(f"{line}\nand so on", record(colour), "compat") for colour in ("red", "blue")]
    last = [metrics.mmmu_open(f"so it is\n{line}", record(colour), "compat") for colour in ("red", "blue")]
    assert (before, last) == ([1, 1], [0, 1])


@pytest.mark.parametrize(
    ("answer", "solution", "score"),
    [
        ("42", "42", 1),
        ("The value is 3.14159", "3.14", 1),
        ("x = 1,000 metres", "1000", 1),
        ("41.9", "42", 0),
        ("It is the mitral valve.", "mitral valve", 1),
        ("aortic valve", "mitral valve", 0),
        ("The answer is b", "b", 1),
        ("bc", "b", 0),  # a single letter must stand alone
    ],
)
def test_open_questions(answer, solution, score):
    assert metrics.mmmu_open(answer, record(solution), "compat") == score


CAPTIONS = ("Caption A: a red cat", "Caption B: a blue ball")


@pytest.mark.parametrize(
    ("track", "solution", "answer", "score"),
    [
        ("yes_no", "yes", "Yes, it does", 1),
        ("yes_no", "no", "yes", 0),
        ("yes_no", "yes", "It does", None),
        ("multi-choice", "B. up", "B. up", 1),
        ("multi-choice", "B. up", "B", 1),
        ("multi-choice", "B. up", "B) up", 1),
        ("multi-choice", "B. up", "A. down", 0),
        ("multi-choice", "B. up", "A", 0),
        ("multi-choice", "B. up", "upwards", None),
        ("multi-choice", "B. up", "b", None),
        ("caption_matching", CAPTIONS[1], "Caption B: a blue ball", 1),
        ("caption_matching", CAPTIONS[1], "Caption B.", 1),
        ("caption_matching", CAPTIONS[1], "B", 1),
        ("caption_matching", CAPTIONS[1], "(B) a blue ball", 1),
        ("caption_matching", CAPTIONS[1], "a blue ball", 1),
        ("caption_matching", CAPTIONS[1], "Caption A", 0),
        ("caption_matching", CAPTIONS[1], "the ball", None),
    ],
)
def test_tempcompass_rules(track, solution, answer, score):
    choices = CAPTIONS if track == "caption_matching" else ("A. down", "B. up")
    assert metrics.tempcompass(answer, record(solution, track=track, choices=choices), "compat") == score


@given(st.text(min_size=1, max_size=40), st.sampled_from(["compat", "strict"]))
def test_every_metric_stays_in_range_on_any_text(answer, mode):
    item = Record(
        "1", "?", "B", options=OPTIONS, extra={"answers": ["b", "B."], "track": "multi-choice", "choices": OPTIONS}
    )
    for task in BENCHMARKS.values():
        score = task.metric(answer, item, mode)
        assert score is None or 0 <= score <= 1
    assert 0 <= metrics.mmmu_open(answer, item, mode) <= 1


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B) or (A)? No, (B) it must be", "B"),
        ("It is A. or B. and then A. again, as said", "A"),
        ("one of B: A: B: remains, they say", "B"),
        ("A said B said A who knows", "A"),
    ],
)
def test_of_one_form_the_last_mention_counts(answer, letter):
    """Both letters occur in the form that decides, and the one named first is named last again."""
    assert metrics.ranked_letter(answer, {"A": "up", "B": "down"}) == letter
