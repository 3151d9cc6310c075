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
    if document is None or record.images or record.videos:
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
        low, high = (token_at(tokenizer, ids, first + place) for place in (span.start, span.stop - 1))
        return slice(low, high + 1)

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
    first, last = (token_at(tokenizer, ids, place) for place in (start, start + max(len(answer), 1) - 1))
    return slice(first, last + 1)


def token_at(tokenizer: Any, ids: Tensor, place: int) -> int:
    """The first token whose end lies beyond character `place` of the decoded text."""
    low, high = 0, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(ids[: middle + 1], skip_special_tokens=False)) > place:
            high = middle
        else:
            low = middle + 1
    return low
