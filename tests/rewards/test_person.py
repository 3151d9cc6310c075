"""`strict` against a person: `person_cases.jsonl`, one judged answer a line.

[problem type, answer, solution, options, question, the person's score]

The kinds: wrappers of LaTeX and markdown, letters in every dress, several letters, denials, hedges and later corrections,
magnitudes, powers, fractions, decimal signs, units, per cent, signs and relations, negation, other scripts, invisible signs,
boxes in other notations.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ral.rewards.answers import score_answer

CASES = [json.loads(line) for line in Path(__file__).with_name("person_cases.jsonl").read_text("utf-8").splitlines()]

#: Answers that score otherwise than the person says, each with the reason why it stays so.
ARGUED = {
    (
        "cannot be determined",
        "D",
    ): "a part of the option `it cannot be determined`: parts of options are not read; paid too little",
}


def test_strict_agrees_with_a_person_and_pays_nothing_too_much() -> None:
    differing = {}
    for kind, answer, solution, options, question, judged in CASES:
        score = score_answer(answer, solution, kind, options=options, question=question)
        if score != pytest.approx(judged, abs=1e-3):
            differing[answer, solution] = (score, judged)
    assert differing.keys() == ARGUED.keys()
    assert all(score <= judged for score, judged in differing.values())
    assert len(CASES) >= 700
