"""Boxes that a text states, in the ways in which models write them.

Four numbers are a box where the text says so: by a tag, a key, the names of the corners or location tokens. A list of four by
itself counts, too, as models write most boxes in prose like this, unless what stands around it makes it a list of other numbers.
Two points are a box inside a tag alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Corners = tuple[float, float, float, float]

#: How a box is written, which says the order of its numbers: `named` corners say their axes, `box_2d` is y before x, and `loc`,
#: location tokens, are y before x in 1024ths. Of `plain` ones the order and the scale are those of the model.
Form = Literal["plain", "box_2d", "named", "loc"]

#: Bins of a location token along one side of an image.
LOC_BINS = 1024


@dataclass(frozen=True)
class StatedBox:
    """A box that a text states.

    Attributes:
        corners: its four numbers in the order of the text, those of named corners as x0, y0, x1, y1. The first is below the third
            and the second below the fourth.
        end: the place of its last character. form: how it is written.
    """

    corners: Corners
    end: int
    form: Form = "plain"


NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,2})?"
_ITEM = rf"[\"']?{NUMBER}[\"']?"
_FOUR = r"\s*,\s*".join([_ITEM] * 4)
_ONE = rf"\[\s*{_FOUR}\s*\]|\(\s*{_FOUR}\s*\)"
_LIST = re.compile(_ONE)

#: The names of corners, in the order x0, y0, x1, y1.
_NAMES = (
    ("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"),
    ("x_0", "y_0", "x_1", "y_1"), ("x_1", "y_1", "x_2", "y_2"), ("x_min", "y_min", "x_max", "y_max"),
)  # fmt: skip
_NAME = "|".join(sorted({name for names in _NAMES for name in names}, key=len, reverse=True))
_PAIR = rf"[\"']?\b(?:{_NAME})[\"']?\s*[:=]\s*{_ITEM}"
_PAIRS = re.compile(rf"({_NAME})[\"']?\s*[:=]\s*[\"']?({NUMBER})")
_FOUR_PAIRS = r"\s*[,;]\s*".join([_PAIR] * 4)

_TAGS = (("<box>", "</box>"), ("<bbox>", "</bbox>"), ("<|box_start|>", "<|box_end|>"))
_BETWEEN = r"\s\[\](),;\"'"
_TAG = "|".join(rf"{re.escape(opens)}[{_BETWEEN}0-9.+eE-]*{re.escape(closes)}" for opens, closes in _TAGS)
_LOC = r"(?:<loc[0-9]{4}>){4}"
_STATED = re.compile(
    rf"(?P<loc>{_LOC})|(?P<tag>{_TAG})|(?P<named>{_FOUR_PAIRS}(?:\s*[\]}}])?)"
    rf"|(?P<plain>\[\s*(?:{_ONE})(?:\s*,\s*(?:{_ONE}))*\s*\]|{_ONE})"
)

#: What stands before a list that is a box by its name; the name is the group.
_KEY = re.compile(
    r"(?i)([a-z0-9_]*(?:box|coord|corner|region|location|position|area|rect|crop)[a-z0-9_]*)[\"'`*]*\s*[:=]\s*$"
)
#: What stands before a list of other numbers: a name or a bracket that it belongs to, an operator, or a word for such a list.
_OTHER_BEFORE = re.compile(
    r"(?i)[a-z0-9_)\]}]$|[a-z_]\($|=\s*$|(?:[0-9)\]]|\b[a-z])[ \t]*[-+*/^%×·][ \t]*$"
    r"|\b(?:numbers?|values?|lists?|sequences?|digits?|sets?|arrays?|vectors?|matrix|matrices|tuples?|rows?|columns?|data|scores?"
    r"|integers?|ages?|counts?|series|terms?|sum|mean|median|mode|average|maximum|minimum|product|elements?|sorted)\b"
    r"[\"'`*]*(?:\s+(?:of|is|are|the|in|as|like))*\s*:?\s*$"
)
#: What stands behind one: an operator with an operand, an index, or a method.
_OTHER_AFTER = re.compile(
    r"[ \t]*[-+*/^%×·][ \t]*[0-9(\[]|[ \t]*=[ \t]*[-+.]?[0-9]|\[\s*-?[0-9]+\s*\]|\.[A-Za-z_]\w*\("
)
#: As many characters before a box are looked at.
_REACH = 200


def stated_boxes(text: str) -> list[StatedBox]:
    """All boxes that a text states, in their order, whatever it says of them.

    Four numbers that are no box, because their corners are not in this order, are left out.
    """
    found = [box for match in _STATED.finditer(text) for box in _READ[str(match.lastgroup)](match)]
    return [box for box in found if _in_order(box.corners)]


def loc_boxes(text: str) -> str:
    """`text` with its boxes of location tokens as lists of numbers, in the same order."""
    return re.sub(_LOC, lambda match: str(_bins(match[0])), text)


def _bins(tokens: str) -> list[int]:
    return [int(token) for token in re.findall(r"[0-9]{4}", tokens)]


def _loc(match: re.Match[str]) -> Iterator[StatedBox]:
    a, b, c, d = _bins(match[0])
    if max(a, b, c, d) < LOC_BINS:
        yield StatedBox((a, b, c, d), match.end() - 1, "loc")


def _tag(match: re.Match[str]) -> Iterator[StatedBox]:
    """All boxes of one tag end with it."""
    inside = match[0][match[0].index(">") + 1 : match[0].rindex("<")]
    parts = [part for part in re.split(rf"[{_BETWEEN}]+", inside) if part]
    if len(parts) % 4 or not all(re.fullmatch(NUMBER, part) for part in parts):
        return
    for first in range(0, len(parts), 4):
        a, b, c, d = map(float, parts[first : first + 4])
        yield StatedBox((a, b, c, d), match.end() - 1)


def _named(match: re.Match[str]) -> Iterator[StatedBox]:
    """In an object or a list alone: in prose, x1 and y1 are the coordinates of a point."""
    before = match.string[max(0, match.start() - _REACH) : match.start()]
    if max(map(before.rfind, "[{")) <= max(map(before.rfind, "]}")):
        return
    values = {name: float(number) for name, number in _PAIRS.findall(match[0])}
    for names in _NAMES:
        if values.keys() == set(names):
            x0, y0, x1, y1 = (values[name] for name in names)
            yield StatedBox((x0, y0, x1, y1), match.end() - 1, "named")


def _plain(match: re.Match[str]) -> Iterator[StatedBox]:
    before = match.string[max(0, match.start() - _REACH) : match.start()]
    key = _KEY.search(before)
    if not key and (_OTHER_BEFORE.search(before) or _OTHER_AFTER.match(match.string, match.end())):
        return
    form: Form = "box_2d" if key and key[1].lower() == "box_2d" else "plain"
    for one in _LIST.finditer(match.string, match.start(), match.end()):
        a, b, c, d = map(float, re.findall(NUMBER, one[0]))
        yield StatedBox((a, b, c, d), one.end() - 1, form)


_READ = {"loc": _loc, "tag": _tag, "named": _named, "plain": _plain}


def _in_order(corners: Corners) -> bool:
    a, b, c, d = corners
    return a < c and b < d and max(map(abs, corners)) < 1e9
