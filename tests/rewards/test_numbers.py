"""Numbers as answers write them: magnitudes, units, fractions."""

from __future__ import annotations

import pytest

from ral.rewards.numbers import parse_number
from ral.rewards.text import clean, readable
from ral.rewards.units import unit_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4 hundred", 400), ("4 thousand", 4e3), ("4 million", 4e6), ("4 mio", 4e6), ("4 bn", 4e9), ("4 mrd", 4e9),
        ("4 trillion", 4e12), ("4 dozen", 48), ("4 lakh", 4e5), ("4 crore", 4e7), ("4 тыс", 4e3), ("4 млрд", 4e9),
        ("4 ألف", 4e3), ("4 مليار", 4e9), ("4万", 4e4), ("4亿", 4e8), ("3/4... cups", 0.75),
    ],
)  # fmt: skip
def test_magnitudes_are_exact(text: str, value: float) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("zero", 0), ("seven", 7), ("nineteen", 19), ("twenty", 20), ("twenty-five", 25), ("twenty five", 25),
        ("one hundred", 100), ("twelve hundred", 1200), ("one hundred five", 105), ("one hundred and five", 105),
        ("one hundred twenty-five", 125), ("five hundred twelve", 512), ("one thousand", 1000), ("one thousand five", 1005),
        ("one thousand two hundred", 1200), ("thirty thousand five hundred and six", 30506),
        ("one hundred thousand", 100_000), ("two million three hundred thousand and one", 2_300_001),
        ("one billion one", 1_000_000_001), ("minus twenty-five", -25), ("zero thousand", 0),
        ("two hundred apples", 200), ("two thousand and five apples", 2005),
    ],
)  # fmt: skip
def test_numbers_in_words(text: str, value: float) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    "text",
    ["zero five", "five zero", "five six", "twenty zero", "twenty fifteen", "nineteen nine", "ten ten", "one hundred zero",
     "two hundred hundred", "one thousand two million", "hundred", "thousand five",
     "one hundred five hundred"],
)  # fmt: skip
def test_words_that_make_no_one_number(text: str) -> None:
    assert parse_number(text) is None


def test_signs_for_fractions_stand_apart_from_the_whole() -> None:
    assert [readable(text) for text in ("½", "3¼", "x⅔", "10²")] == ["1/2", "3 1/4", "x2/3", "10^2"]


def test_wrappers_go_and_other_braces_stay() -> None:
    assert clean(r"{1} and \text{two}, \boxed{\mathrm{three}}") == "{1} and two, three"


@pytest.mark.parametrize(("plain", "written"), [("km", "K.M."), ("kg", "k.g"), ("mph", "m.p.h.")])
def test_units_are_known_with_periods_in_them(plain: str, written: str) -> None:
    assert unit_of(plain) is not None
    assert unit_of(written) == unit_of(plain)
    assert unit_of(f"{plain} of it") is None
