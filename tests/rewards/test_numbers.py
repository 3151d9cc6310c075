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


def test_signs_for_fractions_stand_apart_from_the_whole() -> None:
    assert [readable(text) for text in ("½", "3¼", "x⅔", "10²")] == ["1/2", "3 1/4", "x2/3", "10^2"]


def test_wrappers_go_and_other_braces_stay() -> None:
    assert clean(r"{1} and \text{two}, \boxed{\mathrm{three}}") == "{1} and two, three"


@pytest.mark.parametrize(("plain", "written"), [("km", "K.M."), ("kg", "k.g"), ("mph", "m.p.h.")])
def test_units_are_known_with_periods_in_them(plain: str, written: str) -> None:
    assert unit_of(plain) is not None
    assert unit_of(written) == unit_of(plain)
    assert unit_of(f"{plain} of it") is None
