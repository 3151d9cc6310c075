"""Overlap of two texts: ROUGE and the word error rate, over tokens of any script.

Longest common subsequences and edit distances come from RapidFuzz: they compare 64 tokens at a time, so that a completion of
100,000 characters takes part of a second.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq, Levenshtein

#: Scripts that put no space between words: each character is a token.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_TOKEN = re.compile(
    rf"[{UNSPACED}]|(?<![\w)])[-+]?\d+(?:[.,:]\d+)*(?![^\W\d_{UNSPACED}])|[^\W_{UNSPACED}]+|[<>≤≥=≠±×÷/%^#&$€£¥₹₽₩°+*:]|(?<=\w)-(?!\w)"
)
_PIECE = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


@cache
def _stemmer() -> PorterStemmer:
    return PorterStemmer()


@lru_cache(maxsize=20_000)
def _stem(word: str) -> str:
    return _stemmer().stem(word) if len(word) > 3 and word.isascii() and len(word) < 50 else word


def rouge_tokens(text: str) -> list[str]:
    """rouge-score's tokens: runs of a–z and 0–9 in lower case, stems of those longer than three letters."""
    return [_stem(word) for word in _ASCII_WORD.findall(text.lower())]


def tokens(text: str) -> list[str]:
    """Words of spaced scripts (English ones by their stem), characters of unspaced ones, numbers, and signs that mean something."""
    return [_stem(word) for word in _TOKEN.findall(text.casefold())]


def pieces(text: str) -> list[str]:
    """Pieces between white space; in scripts without spaces, each character."""
    return _PIECE.findall(text)


def rouge(answer: Sequence[str], solution: Sequence[str], kinds: Sequence[str] = ("1", "2", "L")) -> float:
    """The mean F of ROUGE-1, ROUGE-2 and ROUGE-L (or some of them) over tokens."""
    shared = {
        "1": lambda: _shared(Counter(answer), Counter(solution)),
        "2": lambda: _shared(*(Counter(pairwise(words)) for words in (answer, solution))),
        "L": lambda: LCSseq.similarity(answer, solution),
    }
    scores = []
    for kind in kinds:
        fewer = kind == "2"
        scores.append(_f(shared[kind](), len(answer) - fewer, len(solution) - fewer))
    return sum(scores) / len(scores)


def _shared(a: Counter[Any], b: Counter[Any]) -> int:
    return sum((a & b).values())


def _f(shared: int, a: int, b: int) -> float:
    precision, recall = shared / max(a, 1), shared / max(b, 1)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def word_accuracy(answer: Sequence[str], solution: Sequence[str]) -> float:
    """1 − the word error rate, from 0 to 1: edits that make the solution of the answer, by words of the solution."""
    if not solution:
        return float(not answer)
    return max(0.0, 1.0 - Levenshtein.distance(solution, answer) / len(solution))
