"""Scores free-form answers by overlap with the solution, and gives nothing for a contradiction."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ral.rewards.answer_phrases import denies, last_claim, several, without_leads
from ral.rewards.numbers import parse_number, relative_error
from ral.rewards.overlap import UNSPACED, pieces, rouge, tokens
from ral.rewards.text import clean, plain, same_text

#: A solution of this many content words is a name or a phrase, not a sentence: an answer has all of it or is another one.
SHORT = 2.0
#: Tokens of a solution whose "not" is read as one; longer texts deny many things.
_DENIED_WITHIN = 12

#: Words that say nothing by themselves.
_FUNCTION = frozenset(
    tokens(
        """a an the is are was were be been being am do does did has have had of in on at to for with by from as that this
        these those it its s i he she they we you his her their my our your there and so then very"""
    )
)
#: Of each line at most one is true of one thing.
_EXCLUSIVE = tuple(
    frozenset(tokens(line))
    for line in """yes no
    true false
    red orange yellow green blue purple violet pink brown black white gray grey
    left right
    top bottom
    up down
    north south east west
    open closed
    male female man woman boy girl
    да нет
    نعم لا""".splitlines()
)
_ANSWER_OF = {"yes": "no", "no": "yes", "да": "нет", "нет": "да"}
_SUBJECT = re.compile(r"(?:[^\W\d_]+\s){1,6}?(?:is|are|was|were)\s|[^\W\d_]\s?=\s?", re.IGNORECASE)
_IN_A_ROW = re.compile(r"[,;+]|\b(?:and|и)\b|[和与]|\sو")
_UNSPACED = re.compile(f"[{UNSPACED}]")


def free_form(answer: str, solution: str) -> float:
    """1 for the same text or number; else the mean F of ROUGE, which is 0 where the answer contradicts the solution."""
    if same_answer(answer, solution):
        return 1.0
    said, truth = _final(clean(answer), clean(solution)), clean(solution)
    a, s = tokens(said), tokens(truth)
    if not a or not s or contradicts(said, truth):
        return 0.0
    one = 1 in (len(pieces(said)), len(pieces(truth)))  # a single word has no pair of words
    return rouge(a, s, ("1", "L") if one else ("1", "2", "L"))


def same_answer(answer: str, solution: str) -> bool:
    """Whether a short `answer` says what `solution` says: the same text behind "the answer is", the same number, or a yes
    or no with words that agree."""
    if same_text(answer, solution):
        return True
    truth = plain(solution)
    if truth in _ANSWER_OF:
        words = tokens(clean(answer))
        agrees = truth in ("no", "нет") or not denies(clean(answer))
        return words[:1] == [truth] and _ANSWER_OF[truth] not in words and agrees
    said = without_leads(_final(clean(answer), clean(solution)))
    if plain(said) == truth:
        return True
    if (subject := _SUBJECT.match(said)) and plain(said[subject.end() :]) == truth and not denies(subject[0]):
        return True
    if max(len(said.split()), len(truth.split())) > 2:
        return False  # "two people dancing" says more than a number
    a, s = parse_number(said), parse_number(solution)
    return a is not None and s is not None and a.unit == s.unit and relative_error(a.value, s.value) <= 1e-9


def _final(said: str, truth: str) -> str:
    """The final claim of `said`; all of it if the solution itself has words of a correction ("no entry")."""
    return last_claim(said) if last_claim(truth) == truth else said


def contradicts(said: str, truth: str) -> bool:
    """Whether the clean text `said` says something else than `truth`.

    One denies and the other does not. Of a short `truth` also: other numbers, signs or relations; one word exchanged for
    another; several answers, joined by "or" or in a row; two of a kind of which one alone is true ("left right").
    """
    a, s = tokens(said), tokens(truth)
    if len(s) <= _DENIED_WITHIN and denies(said) != denies(truth):
        return True
    own = _content(s)
    if sum(0.5 if _UNSPACED.match(word) else 1.0 for word in own) > SHORT:
        return False
    if _values(a) != _values(s) or (several(said) and not several(truth)):
        return True
    missing, extra = own - _content(a), _content(a) - own
    in_a_row = bool(_IN_A_ROW.search(said)) and not _IN_A_ROW.search(truth)
    a_list = bool(extra) and (in_a_row or (len(extra) >= 2 and not _FUNCTION & set(a)))
    return bool(missing and extra) or a_list or any(kind & own and kind & extra for kind in _EXCLUSIVE)


def _content(words: Iterable[str]) -> set[str]:
    return {word for word in words if word.isalpha() and word not in _FUNCTION}


def _values(words: Sequence[str]) -> Counter[str]:
    """Numbers and signs, with how often they occur."""
    return Counter(word for word in words if word.isdigit() or not word.isalnum())
