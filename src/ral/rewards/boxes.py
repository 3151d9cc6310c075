"""Reads boxes from answers and compares them."""

from __future__ import annotations

import re

from ral.data.stated_boxes import NUMBER, loc_boxes
from ral.rewards.answer_phrases import denies
from ral.rewards.extract import Mode
from ral.rewards.text import readable

Box = tuple[float, float, float, float]


def _patterns(number: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Four numbers in brackets, and a number that is no digit of a name such as x0 or bbox_2d."""
    four = r"[\[(]\s*" + r"\s*,\s*".join([number] * 4) + r"\s*[\])]"
    return re.compile(four), re.compile(rf"(?<![\w.]){number}(?!\w)")


_DECIMAL = r"[-+]?\d+(?:\.\d+)?"
_PATTERNS = {"compat": _patterns(_DECIMAL), "strict": _patterns(NUMBER)}
_LIST = re.compile(rf"[\[(]\s*{_DECIMAL}\s*(?:,\s*{_DECIMAL}\s*)+[\])]")
_SIZE = re.compile(r"(?i)(?<![a-z])(?:w|h|width|height|cx|cy|x_?center|y_?center|center)[\"']?\s*[:=]")
_QUOTED = re.compile(r'"[^"]*"')


def parse_box(text: str, mode: Mode = "strict") -> Box | None:
    """The box `[x0, y0, x1, y1]` in `text`; None where there is none, or where its corners are not in this order.

    `compat` takes the first. `strict` wants exactly one, not denied, and no other list of numbers; a box given by width
    and height, or by its centre, is another box. Four location tokens (`<loc0012>`) are a list of their numbers in either mode.
    """
    four, numeral = _PATTERNS[mode]
    text = loc_boxes(text)
    if mode == "strict":
        text = readable(text)
        if _SIZE.search(text) or denies(_QUOTED.sub("", text)):
            return None
    found = [match[0] for match in four.finditer(text)]
    if mode == "strict" and (len(found) > 1 or (found and _LIST.search(four.sub(" ", text)))):
        return None
    if not found and len(numeral.findall(text)) == 4:
        found = [text]
    if not found:
        return None
    x0, y0, x1, y1 = map(float, numeral.findall(found[0]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < 1e9 else None


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes `(x0, y0, x1, y1)` with positive area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union
