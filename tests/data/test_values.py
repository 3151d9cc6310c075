"""Values of table cells, and how messages show them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ral.data.values import is_empty, is_number, short


def test_messages_show_values_in_sixty_characters() -> None:
    assert short("a" * 58) == repr("a" * 58)
    assert short("a" * 59) == "'" + "a" * 56 + "…"
    assert short(None) == "nothing"
    assert short(bytes(1234)) == "1,234 bytes"
    assert short([1, "b"]) == "[1, 'b']"


@pytest.mark.parametrize(
    ("value", "empty", "number"),
    [(None, True, False), ("", True, False), ([], True, False), ((), True, False), (0, False, True), (-1.5, False, True),
     (False, False, False), (True, False, False), (math.nan, False, False), (math.inf, False, False), ("1", False, False),
     ([0], False, False), ({}, False, False)],
)  # fmt: skip
def test_what_is_empty_and_what_is_a_number(value: Any, empty: bool, number: bool) -> None:
    assert is_empty(value) is empty
    assert is_number(value) is number
