"""What a row gets that says nothing about it, and boxes that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ral.data.boxes import box_coverage
from ral.data.readers import as_records, read_records
from ral.data.record import Box
from ral.errors import DataError


def test_rows_without_ids_are_numbered_from_one(tmp_path: Path) -> None:
    rows = [{"problem": f"{i} + 1?", "solution": str(i + 1)} for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for records in (as_records(rows), list(read_records(tmp_path / "sums.jsonl"))):
        assert [record.id for record in records] == ["1", "2", "3"]
        assert records[0].problem == "0 + 1?"


@pytest.mark.parametrize(
    "corners", [(10, 40, 30, 20), (30, 20, 10, 40), (10, 20, 30, 20)], ids=["y reversed", "x reversed", "no height"]
)
def test_corners_in_another_order_are_refused(corners: tuple[int, int, int, int]) -> None:
    row = {"problem": "what? <image>", "solution": "it", "images": ["a.png"], "boxes": [list(corners)]}
    with pytest.raises(DataError, match=r"row 1.*boxes.*x0 < x1 and y0 < y1"):
        as_records([row])
    with pytest.raises(DataError, match="covers nothing"):
        box_coverage((8, 8), (64, 64), Box(*corners))
