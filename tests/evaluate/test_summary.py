"""What is printed of an evaluation."""

from __future__ import annotations

from dataclasses import replace

from ral.data.record import Record
from ral.evaluate.grounding import Grounding
from ral.evaluate.summary import Summary
from ral.evaluate.tasks import BENCHMARKS

PLAIN = Summary("m", "mme", 4, 0.75, (0.3, 0.9), 1, 0, 0.5, None, None, None, {}, {})


def test_the_figure_that_a_paper_quotes_comes_first_and_its_note_last() -> None:
    said = replace(PLAIN, main=("score", 1843.25, 2800.0), note="Both questions about an image count.").sentence()
    assert said.startswith("mme: score 1,843.2 of 2,800; 75.0% of 4 items right")
    assert said.endswith("one answer to everything: 50.0%). Both questions about an image count.")
    assert "track/mean 34.5%; 75.0%" in replace(PLAIN, main=("track/mean", 0.345, 1.0)).sentence()
    assert PLAIN.sentence().startswith("mme: 75.0% of 4 items right")


def test_what_grounding_could_not_be_measured_of_is_counted() -> None:
    some = replace(PLAIN, grounding=Grounding(0.25, 0.5, 2.0, 0.7, 0.1), settings={"layer": 3}, measured=3, grounded=4)
    assert "(over 3 of 4 items with evidence; the others have no answer, or the model was not shown" in some.sentence()
    assert "over" not in replace(some, measured=4).sentence()
    assert replace(PLAIN, measured=0, grounded=4).sentence().endswith("Where it looked: none of 4 could be measured.")
    assert "Where it looked" not in replace(PLAIN, measured=0, grounded=0).sentence()


def test_an_evaluation_reads_answers_as_its_scorer_does() -> None:
    item = Record("1", "?", "B", problem_type="multiple choice", options=("A. x", "B. y"), extra={"category": "c"})
    text = "<think>so <answer>A</answer></think><answer>B</answer>"
    task = BENCHMARKS["vstar"]
    assert (task.score(item, text, mode="strict", think=True), task.judge(item, text, mode="strict").prediction) == (
        1.0,
        "B",
    )
    assert (task.score(item, text, mode="compat", think=True), task.judge(item, text, mode="compat").prediction) == (
        0.0,
        "A",
    )


def test_benchmarks_say_which_figure_is_theirs() -> None:
    assert {name: (task.main, task.highest) for name, task in BENCHMARKS.items() if task.main != "accuracy"} == {
        "mme": ("score", 2800.0), "mmmu-pro": ("track/mean", 1.0), "cv-bench": ("score", 1.0),
    }  # fmt: skip
