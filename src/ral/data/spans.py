"""Finds words among tokens: a document and its evidence in a prompt, an answer in a completion."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ral.data.record import Box, Record, Span
from ral.errors import DataError


@dataclass(frozen=True)
class Passage:
    """The document of a record in its prompt.

    tokens: the prompt's tokens that spell it, N in number. boxes: the evidence, in a medium that is N pixels wide and one
    high, a pixel for each of these tokens.
    """

    tokens: slice
    boxes: tuple[Box, ...]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the one medium."""
        return [(self.tokens.stop - self.tokens.start, 1)]


def passage(tokenizer: Any, ids: Tensor, record: Record) -> Passage | None:
    """The document of `record` in its prompt `ids` [P]; None if it has none, or images or videos beside it.

    A token that holds characters of a span together with others counts as the span's. Raises DataError for a problem that
    the prompt does not spell out, and for evidence outside the document.
    """
    document = record.document
    if document is None or record.has_media:
        return None
    for span in record.evidence:
        if not document.start <= span.start < span.stop <= document.stop:
            raise DataError(
                f"{record.origin}: evidence at characters {span.start} to {span.stop} is not in the document at "
                f"{document.start} to {document.stop}; both count characters of the problem"
            )
    written = tokenizer.decode(ids, skip_special_tokens=False)
    first = written.find(record.problem)
    if first < 0:
        raise DataError(f"{record.origin}: the prompt does not spell out the problem, so its document cannot be found")

    def tokens(span: Span) -> slice:
        return token_span(tokenizer, ids, first + span.start, first + span.stop)

    whole = tokens(document)
    places = [tokens(span) for span in record.evidence]
    return Passage(whole, tuple(Box(at.start - whole.start, 0, at.stop - whole.start, 1) for at in places))


def answer_token(tokenizer: Any, ids: Tensor, answer: str) -> int | None:
    """The place in completion `ids` [R] of the first token of its answer's body; None if the answer is not in one piece.

    `answer` is the body as `ral.rewards.answers.extract_answer` gives it. In `<answer>` tags or without, the last place where it
    stands counts. A token that holds the body's first character together with other text counts as the body's first.
    """
    span = answer_span(tokenizer, ids, answer)
    return None if span is None else span.start


def answer_span(tokenizer: Any, ids: Tensor, answer: str) -> slice | None:
    """The tokens of completion `ids` [R] that spell its answer's body, see `answer_token`."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    tagged = list(re.finditer(rf"<answer>\s*({re.escape(answer)})\s*</answer>", text))
    start = tagged[-1].start(1) if tagged else text.rfind(answer)
    if start < 0:
        return None
    return token_span(tokenizer, ids, start, start + max(len(answer), 1))


def token_span(tokenizer: Any, ids: Tensor, start: int, stop: int) -> slice:
    """All tokens of `ids` [T] that hold a part of characters `start` to `stop` (excluded, at least one) of the decoded text."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    last = _ends(tokenizer, ids, text, stop - 1)
    if start == 0:
        return slice(0, last + 1)
    before = _ends(tokenizer, ids, text, start - 1)
    # The token that ends the character before begins this one as well, unless the text up to it is whole and ends there.
    ends_there = tokenizer.decode(ids[: before + 1], skip_special_tokens=False) == text[:start]
    return slice(min(before + ends_there, last), last + 1)


def token_at(tokenizer: Any, ids: Tensor, place: int) -> int:
    """The token of `ids` [T] that ends character `place` of the decoded text; the last one behind its end."""
    return _ends(tokenizer, ids, tokenizer.decode(ids, skip_special_tokens=False), place)


def _ends(tokenizer: Any, ids: Tensor, text: str, place: int) -> int:
    """`token_at`, of ids whose text is known."""
    low, high = 0, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if _finished(tokenizer, ids, text, middle + 1) > place:
            high = middle
        else:
            low = middle + 1
    return low


def _finished(tokenizer: Any, ids: Tensor, text: str, count: int) -> int:
    """Characters of `text` that the first `count` tokens finish.

    The length of what they spell does not say it: the bytes of an unfinished character spell a replacement character each, and
    with some tokenizers so do all bytes of the run that it ends. So tokens are left out at the end until the others begin the text.
    """
    most = 0
    for known in range(count, 0, -1):
        spelt = tokenizer.decode(ids[:known], skip_special_tokens=False)
        if text.startswith(spelt):
            return max(most, len(spelt))
        finished = spelt.rstrip("\ufffd")
        most = max(most, len(finished) if text.startswith(finished) else 0)
    return most
