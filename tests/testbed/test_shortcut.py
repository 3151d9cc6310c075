"""The shortcut sets: a hint that is right as often as said in training, and never in the test; the image always tells."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ral.data.record import DataError, Record
from ral.testbed.rings import COLOURS, ring_records
from ral.testbed.sets import SETS
from ral.testbed.shortcut import HINTS, both_ways, shortcut_records


def inside(record: Record) -> str:
    """The colour of the disc in the record's box."""
    [box] = record.boxes
    colour = record.images[0].getpixel((int(box.x0 + box.x1) // 2, int(box.y0 + box.y1) // 2))  # type: ignore[union-attr]
    return next(name for name, rgb in COLOURS.items() if rgb == colour)


@pytest.mark.parametrize("hint", HINTS)
def test_the_hint_is_right_as_often_as_said_and_the_box_shows_the_answer(hint: str) -> None:
    one = SETS[f"shortcut-{hint}-90"]
    train, test = one.read("train", 600), one.evaluated(60, 0)
    right = np.mean([record.extra["hint"] == record.solution for record in train])
    assert right == pytest.approx(0.9, abs=0.04)
    assert all(record.extra["hint"] != record.solution for record in test + one.read("test", 60))
    agreeing = SETS[f"shortcut-{hint}-100"].evaluated(60, 0)
    assert all(record.extra["hint"] == record.solution for record in agreeing)
    for record in train[:40] + test:
        assert inside(record) == record.solution


def discs(record: Record) -> list[str]:
    """Colours of all discs, in reading order."""
    image, found = record.images[0], []
    names = {rgb: name for name, rgb in COLOURS.items()}
    for row in range(4):
        for column in range(4):
            colour = image.getpixel((column * 16 + 8, row * 16 + 8))  # type: ignore[union-attr]
            found += [names[colour]] if colour in names else []
    return found


def test_each_hint_stands_where_it_says() -> None:
    for record in shortcut_records(30, 5, hint="majority", right=0.5):
        [(colour, most), (_, second)] = Counter(discs(record)).most_common(2)
        assert (colour, most, second) == (record.extra["hint"], 4, 1)
    for record in shortcut_records(30, 5, hint="position", right=0.5):
        assert discs(record)[0] == record.extra["hint"]
    word = shortcut_records(1, 5, hint="word")[0]
    assert word.problem.split()[0] == word.extra["hint"]
    caption = shortcut_records(1, 5, hint="caption")[0]
    assert f"ring has {caption.extra['hint']} in it. " in caption.problem


def test_a_longer_draw_begins_with_a_shorter_one_and_discs_differ_from_their_rings() -> None:
    for hint in HINTS:
        longer, shorter = (shortcut_records(n, 3, hint=hint, right=0.8) for n in (20, 5))
        assert [r.problem for r in longer[:5]] == [r.problem for r in shorter]
        assert len({r.id for r in longer}) == 20
    assert shortcut_records(3, 7)[1].images[0].tobytes() == ring_records(3, 7)[1].images[0].tobytes()  # type: ignore[union-attr]


def test_examples_of_both_ways_follow_the_hint_in_half() -> None:
    records = both_ways(600, 1)
    truth = shortcut_records(600, 1, right=0.5)
    wrong = [(one, other) for one, other in zip(records, truth, strict=True) if other.extra["hint"] != other.solution]
    followed = np.mean([one.solution == other.extra["hint"] for one, other in wrong])
    assert followed == pytest.approx(0.5, abs=0.08)
    assert all(one.trace == other.trace for one, other in wrong)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(DataError, match="hint='smell' is not known; choose one of word"):
        shortcut_records(1, 0, hint="smell")
    with pytest.raises(DataError, match=r"right=1\.5: expected a probability"):
        shortcut_records(1, 0, right=1.5)
