from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from ral.data.fingerprint import fingerprint
from ral.data.record import Record
from ral.testbed.rings import ring_records

RINGS = ring_records(3, seed=0)


def test_equal_data_has_one_fingerprint() -> None:
    assert fingerprint(RINGS) == fingerprint(ring_records(3, seed=0))


def test_content_order_and_number_count() -> None:
    other = Image.new("RGB", (64, 64))
    different = [
        RINGS,
        RINGS[:2],
        RINGS[::-1],
        [replace(RINGS[0], solution="no colour"), *RINGS[1:]],
        [replace(RINGS[0], problem="another question"), *RINGS[1:]],
        [replace(RINGS[0], images=(other,)), *RINGS[1:]],
        [replace(RINGS[0], extra={"difficulty": {1, 2}}), *RINGS[1:]],
    ]
    assert len({fingerprint(records) for records in different}) == len(different)


def test_a_moved_file_is_the_same_and_another_of_its_name_is_not(tmp_path: Path) -> None:
    for folder, size in (("a", 8), ("b", 8), ("c", 9)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (size, size)).save(tmp_path / folder / "x.bmp")
    a, b, c = (fingerprint([Record("1", "q", "s", images=(tmp_path / folder / "x.bmp",))]) for folder in "abc")
    assert a == b != c
