"""Boxes as answers are read from every way of writing numbers."""

from __future__ import annotations

import pytest

from ral.rewards.boxes import parse_box


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[.1, .25, .5, .75]", (0.1, 0.25, 0.5, 0.75)),
        ("[10., 20., 30., 40.]", (10, 20, 30, 40)),
        ("[1e1, 2e1, 3e1, 4.5e1]", (10, 20, 30, 45)),
        ("<loc0010><loc0020><loc0300><loc1023>", (10, 20, 300, 1023)),
    ],
)
def test_numbers_in_every_way_of_writing_them(text: str, box: tuple[float, ...]) -> None:
    assert parse_box(text) == box


def test_location_tokens_are_read_as_the_solution_is_written_in_either_mode() -> None:
    assert parse_box("<loc0010><loc0020><loc0300><loc1023>", "compat") == (10, 20, 300, 1023)
    assert parse_box("<loc0010><loc0020><loc0300>") is None
