"""What a row gets that says nothing about it, and boxes that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.mark.parametrize(
    "meta",
    [{"source": "a.png"}, {"pages": [{"scan": {"file": "a.png"}}]}, [{"thumbnail": {"bytes": b"x", "path": None}}]],
    ids=["object", "deeper", "bytes"],
)
def test_a_medium_inside_of_an_object_that_nothing_reads_is_an_error(meta: Any) -> None:
    row = {"problem": "what?", "solution": "it", "meta": meta}
    with pytest.raises(DataError, match=r"row 1: field 'meta': expected media .*which nothing reads"):
        as_records([row])
    (record,) = as_records([row], columns={"extra": ["meta"]})
    assert record.extra == {"meta": meta}
    if not isinstance(meta, list):  # beside the picture itself its path is a note
        assert as_records([row | {"image": "folder/a.png"}])[0].extra == {"meta": meta}


@pytest.mark.parametrize(
    ("name", "format", "beside"),
    [
        ("messages", "messages", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what?"}]),
        (
            "messages",
            "messages",
            [{"role": r, "content": t} for r, t in (("user", "hi"), ("assistant", "yes?"), ("user", "what?"))],
        ),
        (
            "prompt",
            "trl",
            [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "w"}]}],
        ),
    ],
)
def test_a_dialogue_that_says_more_than_the_question_beside_it_is_not_left_out(
    name: str, format: str, beside: list[dict[str, Any]]
) -> None:
    row = {"problem": "what?", "solution": "it", name: beside}
    with pytest.raises(DataError, match=rf"field '{name}': .*found both.*format: {format}"):
        as_records([row])
    (record,) = as_records([row], format=format)
    assert record.system or record.history or record.images
    assert as_records([row], columns={"extra": [name]})[0].extra == {name: beside}
    repeated = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "It is it."}]
    assert as_records([row | {name: repeated}])[0].problem == "what?"


def test_a_system_prompt_in_a_column_is_the_system_turn() -> None:
    (record,) = as_records([{"system_prompt": "Be brief.", "question": "what?", "response": "it"}])
    assert (record.system, record.extra) == ("Be brief.", {})


def test_half_of_a_surrogate_pair_is_found_in_arrays_and_named_plainly() -> None:
    with pytest.raises(DataError, match="row 1: field 'options': expected text, found half of a surrogate pair"):
        as_records([{"problem": "what?", "solution": "A", "options": np.array(["a\ud800", "b"])}])
