"""The needle search: one of many lines of a text answers "what colour is inside the red ring?"; its place is known.

The ring search in words: the same question and answers, before a text of any length in place of an image.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from ral.data.record import Record, Span
from ral.errors import DataError
from ral.testbed.rings import COLOURS, QUESTIONS

#: What says which colour is in which ring, and the hay around it, which names no colour.
FACT = "the {} ring:{}"
HAY = ("{} {} is {} the {}", "there is {} {} {} the {}")
SHAPES = ("circle", "triangle", "rectangle", "shape")
PLACES = ("above", "below", "to the left of", "to the right of")


@dataclass(frozen=True)
class Needle:
    """One text and its question: the colour of the ring asked about, and its `lines`, of which number `target` answers."""

    id: str
    question: str
    colour: str
    answer: str
    lines: tuple[str, ...]
    target: int

    @cached_property
    def numbered(self) -> tuple[str, ...]:
        return tuple(f"row {number} {line}\n" for number, line in enumerate(self.lines, start=1))

    def record(self) -> Record:
        """As a question: it stands before the text, the trace is what to look for, the evidence is the line."""
        head = f"{self.question}\n"
        start = len(head) + sum(map(len, self.numbered[: self.target]))
        return Record(
            id=self.id,
            problem=head + "".join(self.numbered),
            solution=self.answer,
            document=Span(len(head), len(head) + sum(map(len, self.numbered))),
            evidence=(Span(start, start + len(self.numbered[self.target]) - 1),),  # without the line's end
            trace=f"the {self.colour} ring",
            origin=self.id,
        )


def needles(n: int, seed: int, *, lines: int = 8, rings: int = 4) -> list[Needle]:
    """`n` texts of `lines` lines, of which `rings` say what is in a ring, each of another colour; the rest is hay.

    Text i depends on `seed` and i alone, so a longer list starts with a shorter one. Raises `DataError` for settings that
    cannot be written.
    """
    if n < 1:
        raise DataError(f"n={n}: ask for at least one record")
    if not 1 <= rings <= min(lines, len(COLOURS)):
        raise DataError(
            f"rings={rings}, lines={lines}: a text takes 1 to {len(COLOURS)} rings, each of a colour of its own, "
            "and a line for each; change rings or lines"
        )
    return [_needle(f"needles-{seed}-{index}", lines, rings) for index in range(n)]


def needle_records(n: int, seed: int, *, lines: int = 8, rings: int = 4) -> list[Record]:
    """`needles` as records: question first, then the text; document and evidence are known."""
    return [needle.record() for needle in needles(n, seed, lines=lines, rings=rings)]


def recital_records(n: int, seed: int) -> list[Record]:
    """Texts without hay whose trace recites all that they say in another order, for cold starts: many searches a text."""
    found = []
    for needle in needles(n, seed, lines=len(COLOURS), rings=len(COLOURS)):
        facts = random.Random(f"recital-{needle.id}").sample(needle.lines, len(needle.lines))
        record = needle.record()
        problem = record.problem.replace(needle.question, "what is in the rings?")
        trace, answer = " ".join(facts), facts[-1].split(":")[1]
        id = f"recital-{needle.id}"
        found.append(Record(id=id, problem=problem, solution=answer, trace=trace, origin=id))
    return found


def _needle(id: str, lines: int, rings: int) -> Needle:
    rng = random.Random(id)  # seeded by text: the same on every platform and Python version
    colours = rng.sample(list(COLOURS), rings)
    inside = [rng.choice([name for name in COLOURS if name != colour]) for colour in colours]
    text = [_hay(rng) for _ in range(lines)]
    places = rng.sample(range(lines), rings)
    for place, colour, held in zip(places, colours, inside, strict=True):
        text[place] = FACT.format(colour, held)
    return Needle(id, rng.choice(QUESTIONS).format(colours[0]), colours[0], inside[0], tuple(text), places[0])


def _hay(rng: random.Random) -> str:
    first, second = rng.sample(SHAPES, 2)
    return rng.choice(HAY).format(rng.choice(("a", "the")), first, rng.choice(PLACES), second)
