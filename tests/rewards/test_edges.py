"""Single values at the edge of a rule, where a rule that is nearly right gives another score."""

from __future__ import annotations

import pytest

from ral.rewards.answers import score_answer
from ral.rewards.boxes import parse_box


@pytest.mark.parametrize(
    ("answer", "compat", "strict"),
    [("0.104", 1.0, 0.0), ("0.106", 0.0, 0.0), ("0.10", 1.0, 1.0), ("0.1", 1.0, 1.0), ("0.14", 0.0, 0.0)],
)
def test_a_number_is_compared_at_two_decimals_by_the_peers_and_as_it_is_by_a_person(
    answer: str, compat: float, strict: float
) -> None:
    assert score_answer(answer, "0.1", "numerical", mode="compat") == compat
    assert score_answer(answer, "0.1", "numerical", mode="strict") == strict


@pytest.mark.parametrize("mode", ["compat", "strict"])
@pytest.mark.parametrize(
    "text", ["[10, 40, 30, 20]", "[10, 20, 30, 20]", "[30, 20, 10, 40]", "[10, 20, 10, 40]"],
    ids=["y reversed", "no height", "x reversed", "no width"],
)  # fmt: skip
def test_corners_in_another_order_are_no_box(text: str, mode: str) -> None:
    assert parse_box(text, mode) is None  # type: ignore[arg-type]
    assert parse_box("[10, 20, 30, 40]", mode) == (10, 20, 30, 40)  # type: ignore[arg-type]
