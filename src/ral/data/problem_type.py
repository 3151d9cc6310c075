"""Guesses the problem type of a record that does not name it."""

from __future__ import annotations

import re

from ral.data.record import ProblemType

_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
# Possessive, so that a long row of digits costs its length and not the square of it.
_NUMBER = re.compile(r"[-+]?(?:[\d,]*+\.\d++|[\d,]++(?<=\d))\s*+%?")
_BOX = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([r"-?[\d.]+"] * 4) + r"\s*[\])]")


def guess_type(solution: str, options: tuple[str, ...] = ()) -> ProblemType:
    """The problem type of a record that does not name it: by its options, else by the form of its solution."""
    solution = solution.strip()
    if options or _LETTER.fullmatch(solution):
        return "multiple choice"
    if _BOX.fullmatch(solution):
        return "box"
    if _NUMBER.fullmatch(solution):
        return "numerical"
    return "math" if re.search(r"\\[a-z]+|\$|\^", solution) else "free-form"
