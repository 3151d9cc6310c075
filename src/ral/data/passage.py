"""Where the evidence stands in a prompt of words: a document's tokens as a map of one row, and spans as boxes in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .record import Box, DataError, Record, Span


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
