"""Boxes that a text states: every accepted form with any numbers around any words, and none in prose with numbers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.data.stated_boxes import Corners, Form, loc_boxes, stated_boxes

NUMERALS = st.one_of(
    st.integers(-2000, 5000).map(str),
    st.floats(0, 2000, allow_nan=False).map(lambda value: f"{value:.3f}"),
    st.integers(0, 999).map(lambda value: f".{value}"),
    st.integers(0, 2000).map(lambda value: f"{value}."),
    st.tuples(st.integers(0, 99), st.integers(-3, 3)).map(lambda parts: "{}e{}".format(*parts)),
)
#: Words of prose, with brackets, signs and numbers, but no box.
WORDS = st.lists(
    st.sampled_from(
        [
            "the",
            "cup",
            "is",
            "at",
            "left",
            "see:",
            "（图）",
            "Fig. 3",
            "12",
            "(ii)",
            "–",
            "\n- ",
            "3.5 m",
            "<think>",
            "`",
        ]
    ),
    max_size=6,
).map(" ".join)


@st.composite
def numerals(draw: st.DrawFn) -> tuple[str, str, str, str]:
    """Four numbers as written, the third above the first and the fourth above the second."""
    x0, x1 = sorted(draw(st.lists(NUMERALS, min_size=2, max_size=2, unique_by=float)), key=float)
    y0, y1 = sorted(draw(st.lists(NUMERALS, min_size=2, max_size=2, unique_by=float)), key=float)
    return x0, y0, x1, y1


#: The forms of docs/data.md.
PLAIN = [
    "[{}, {}, {}, {}]", "[{},{},{},{}]", "({}, {}, {}, {})", "[[{}, {}, {}, {}]]", "[\n  {},\n  {},\n  {},\n  {}\n]", "\\boxed{{[{}, {}, {}, {}]}}",
    '{{"bbox_2d": [{}, {}, {}, {}], "label": "a"}}', "{{'bbox': ['{}', '{}', '{}', '{}']}}", '{{"box": ["{}","{}","{}","{}"]}}',
    "bounding_box = [{}, {}, {}, {}]", "region: ({}, {}, {}, {})",
    "<box>{} {} {} {}</box>", "<box>[[{}, {}, {}, {}]]</box>", "<box>({},{}),({},{})</box>", "<bbox>{}, {}, {}, {}</bbox>",
    "<|box_start|>({},{}),({},{})<|box_end|>",
]  # fmt: skip
NAMED = [
    '{{"x1": {}, "y1": {}, "x2": {}, "y2": {}}}', '{{"label": "a", "x0": {}, "y0": {}, "x1": {}, "y1": {}}}',
    "[x0={}, y0={}, x1={}, y1={}]", "{{'xmin': '{}', 'ymin': '{}', 'xmax': '{}', 'ymax': '{}'}}",
    '{{"left": {}, "top": {}, "right": {}, "bottom": {}}}',
]  # fmt: skip
FORMS: list[tuple[str, Form]] = [
    *((form, "plain") for form in PLAIN),
    *((form, "named") for form in NAMED),
    ('[{{"box_2d": [{}, {}, {}, {}], "label": "a"}}]', "box_2d"),
]


@given(numerals(), st.sampled_from(FORMS), WORDS, WORDS)
def test_every_accepted_form_is_read_around_any_words(
    written: tuple[str, str, str, str], form: tuple[str, Form], before: str, after: str
) -> None:
    said = form[0].format(*written)
    text = f"{before} {said} {after}"
    [box] = stated_boxes(text)
    assert box.corners == tuple(map(float, written))
    assert box.form == form[1]
    assert len(before) < box.end < len(before) + 1 + len(said)
    assert text[box.end] in "])}>"


@given(st.lists(st.integers(0, 1023), min_size=4, max_size=4, unique=True), WORDS)
def test_location_tokens_are_read_in_their_order(bins: list[int], words: str) -> None:
    a, c, b, d = *sorted(bins[:2]), *sorted(bins[2:])
    tokens = "".join(f"<loc{value:04}>" for value in (a, b, c, d))
    [box] = stated_boxes(f"{words} {tokens} {words}")
    assert (box.corners, box.form) == ((a, b, c, d), "loc")
    assert loc_boxes(f"a {tokens}.") == f"a [{a}, {b}, {c}, {d}]."


def test_a_location_token_beyond_the_last_bin_is_none() -> None:
    assert not stated_boxes("<loc0000><loc0000><loc1024><loc1023>")
    assert stated_boxes("<loc0000><loc0000><loc1023><loc1023>")


#: Prose with numbers: {} is a list of four that would be a box by itself.
OTHER = [
    "the numbers {} are four", "the mean of {} is 3", "values: {}", '"scores": {}', "the set is {}", "x = {}", "x={}", "f{}", "sum({})",
    "a[0]{}", "3 * {}", "a + {}", "{} + [1, 1, 1, 1]", "{} * 2", "{} = 10", "{}[2]", "{}.sum()", "sorted {}", "row {}",
]  # fmt: skip
SCRAPS = st.one_of(
    st.integers(-99, 9999).map(str),
    st.sampled_from(
        [
            "(10, 20)", "(10,20),(30,40)", "points (10,20) (30,40) (50,60)", "[1, 2, 3]", "[1, 2, 3, 4, 5]", "[[10, 20], [30, 40]]",
            "(1, 2, 3)", "1, 2, 3, 4", "x1 = 1, y1 = 2, x2 = 3, y2 = 4", "[1,000, 2,000, 3,000, 4,000]", "2 × 3 = 6", "<box>", "</box>",
            "<box>1 2 3</box>", "[x, y, 3, 4]", "x1, y1", '{"x1": 1, "y1": 2}', "<loc0001><loc0002>", "[56, 78, 12, 34]", "$5.00", "1e5",
            "[10px, 20px, 30px, 40px]",
        ]
    ),
    st.sampled_from(["the", "is", "so", "at", "box", ":", ",", "and"]),
)  # fmt: skip


@given(st.lists(SCRAPS, max_size=12))
def test_prose_with_numbers_states_no_box(scraps: list[str]) -> None:
    assert not stated_boxes(" ".join(scraps))


@pytest.mark.parametrize("text", OTHER)
def test_a_list_of_other_numbers_is_no_box(text: str) -> None:
    for numbers in ("[1, 2, 3, 4]", "[0.5, 7, 20., 1e2]"):
        assert not stated_boxes(text.format(numbers))
        assert stated_boxes(f"the cup {numbers} is red")


def test_all_boxes_of_a_text_in_their_order() -> None:
    text = 'a [1, 2, 3, 4] b "bbox_2d": [10,20, 30.5,40] c <box>5 6 7 8</box> d [9, 9, 1, 1] e [[1, 2, 3, 5], [1, 2, 3, 6]]'
    found = stated_boxes(text)
    expected: list[Corners] = [(1, 2, 3, 4), (10, 20, 30.5, 40), (5, 6, 7, 8), (1, 2, 3, 5), (1, 2, 3, 6)]
    assert [one.corners for one in found] == expected
    assert [text[one.end - 1 : one.end + 1] for one in found] == ["4]", "0]", "x>", "5]", "6]"]
    both = stated_boxes('{"box_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]} <box>[[1,2,3,5],[1,2,3,6]]</box>')
    assert [(one.corners[3], one.form) for one in both] == [(4, "box_2d"), (8, "box_2d"), (5, "plain"), (6, "plain")]


def test_the_order_of_named_corners_does_not_matter() -> None:
    [box] = stated_boxes('{"y2": 40, "x1": 10, "x2": 30, "y1": 20}')
    assert box.corners == (10, 20, 30, 40)
    assert not stated_boxes('{"x1": 10, "y1": 20, "xmax": 30, "ymax": 40}')


@pytest.mark.parametrize(
    "piece", ["[", "[ ", "[1,", "<box>1 ", "[1,2,3,4],", '{"x1": 1, ', "1" * 50, "<loc0001>", "[[1,2,3,4],"]
)
def test_long_texts_take_no_longer_than_their_length(piece: str) -> None:
    text = piece * (40_000 // len(piece))
    began = time.perf_counter()
    stated_boxes(text)
    assert time.perf_counter() - began < 5
