"""The shortcut: a ring search with a hint that is right in most training questions, and wrong in every test question.

A model can answer by the hint or by the image. Reward alone pays both while the hint is right. So the test, where hint and image
disagree, shows which way a model learnt, and grounding shows where it looked. Four hints:

word      a colour word before the question
caption   a sentence before the question that says what is in the ring
majority  the colour of most discs of the image
position  the disc of the first ring, in reading order; the question mostly asks for this ring
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from ral.data.record import Record
from ral.errors import DataError
from ral.testbed.rings import COLOURS, QUESTIONS, Ring, Scene, ring_scenes

#: Makes a hint in a scene that is right, or one that is wrong, and returns the record and the hint's answer.
Hint = Callable[[Scene, bool, random.Random], tuple[Record, str]]


def _word(scene: Scene, right: bool, rng: random.Random) -> tuple[Record, str]:
    record, hint = scene.record(), _said(scene, right, rng)
    return replace(record, problem=f"{hint} {record.problem}"), hint


def _caption(scene: Scene, right: bool, rng: random.Random) -> tuple[Record, str]:
    record, hint = scene.record(), _said(scene, right, rng)
    caption = f"the {scene.rings[scene.target].colour} ring has {hint} in it."
    return replace(record, problem=f"{caption} {record.problem}"), hint


def _said(scene: Scene, right: bool, rng: random.Random) -> str:
    """The colour that a text names."""
    inside = scene.rings[scene.target].inside
    return inside if right else _other(rng, inside)


def _majority(scene: Scene, right: bool, rng: random.Random) -> tuple[Record, str]:
    hint = rng.choice(list(COLOURS))
    can = [i for i, ring in enumerate(scene.rings) if ring.colour != hint]  # a disc differs from its ring
    many = set(rng.sample(can, len(scene.rings) // 2 + 1))
    rest = [i for i in range(len(scene.rings)) if i not in many]
    spare = [name for name in COLOURS if name != hint]
    rng.shuffle(spare)
    discs = dict.fromkeys(many, hint)
    for i in rest:
        discs[i] = next(name for name in spare if name != scene.rings[i].colour)
        spare.remove(discs[i])
    rings = tuple(replace(ring, inside=discs[i]) for i, ring in enumerate(scene.rings))
    return _asked(scene, rings, rng.choice(sorted(many) if right else rest), rng).record(), hint


def _position(scene: Scene, right: bool, rng: random.Random) -> tuple[Record, str]:
    hint = scene.rings[0].inside
    target = 0 if right else rng.randrange(1, len(scene.rings))
    rings = list(scene.rings)
    if not right and rings[target].inside == hint:
        rings[target] = replace(rings[target], inside=_other(rng, hint, rings[target].colour))
    return _asked(scene, rings, target, rng).record(), hint


def _asked(scene: Scene, rings: Sequence[Ring], target: int, rng: random.Random) -> Scene:
    """The scene with other discs, and the question about another ring."""
    question = rng.choice(QUESTIONS).format(rings[target].colour)
    return replace(scene, rings=tuple(rings), target=target, question=question)


def _other(rng: random.Random, *than: str) -> str:
    return rng.choice([name for name in COLOURS if name not in than])


HINTS: dict[str, Hint] = {"word": _word, "caption": _caption, "majority": _majority, "position": _position}


def shortcut_records(n: int, seed: int, *, hint: str = "word", right: float = 0.0) -> list[Record]:
    """`n` records, of which each has a right hint with probability `right`; 0: hint and image always disagree.

    `extra["hint"]` is the answer by the hint. The box is the target ring's. Record i depends on the arguments and i alone.

    Raises `DataError` for an unknown hint, and for a probability outside of [0, 1].
    """
    if hint not in HINTS:
        raise DataError(f"hint={hint!r} is not known; choose one of {', '.join(HINTS)}")
    if not 0 <= right <= 1:
        raise DataError(f"right={right}: expected a probability from 0 to 1")
    records = []
    for scene in ring_scenes(n, seed):
        rng = random.Random(f"{hint}-{scene.id}")
        record, answer = HINTS[hint](scene, rng.random() < right, rng)
        name = scene.id.replace("rings", f"shortcut-{hint}", 1)
        records.append(replace(record, id=name, origin=name, extra={"hint": answer}))
    return records


def both_ways(n: int, seed: int, *, hint: str = "word") -> list[Record]:
    """Worked examples for a start that knows both ways: half of the hints are right, and half of the answers follow the hint."""
    records = shortcut_records(n, seed, hint=hint, right=0.5)
    followed = [random.Random(f"follow-{record.id}").random() < 0.5 for record in records]
    return [
        replace(record, solution=record.extra["hint"]) if follow else record
        for record, follow in zip(records, followed, strict=True)
    ]
