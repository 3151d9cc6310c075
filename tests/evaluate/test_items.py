"""Items as lines of `items.jsonl`: they go there and back, older ones are read, and what is no item says what is wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.errors import DataError
from ral.evaluate.grounding import Grounding
from ral.evaluate.items import Item, read_items
from ral.files import json_line

_texts, _shares = st.text(max_size=20), st.floats(0, 1)
_groundings = st.builds(
    Grounding, pointing=_shares, mass=_shares, lift=st.floats(0, 50), auc=_shares, visual_share=_shares
)
_items = st.builds(
    Item, step=st.none() | st.integers(0, 99), id=_texts, question=_texts, solution=_texts, completion=_texts,
    prediction=st.none() | _texts, correct=_shares, unparsed=st.booleans(), truncated=st.booleans(),
    tokens=st.none() | st.integers(0, 999), cluster=_texts, grounding=st.none() | _groundings,
    layers=st.none() | st.lists(st.none() | _groundings, max_size=3).map(tuple), probes=st.none() | st.just({"sinks": [1, 2]}),
    map=st.none() | st.just({"grid": [1, 2], "values": [0.25, 0.5]}), size=st.none() | st.just([64, 64]),
    boxes=st.just([[0, 1, 2, 3.5]]), times=st.none() | st.just([0.0, 0.5]),
)  # fmt: skip


@given(_items)
def test_an_item_is_read_as_it_was_written(item: Item) -> None:
    assert Item.from_json(json.loads(json_line(item.to_json())), "items.jsonl:1") == item


def test_what_is_undefined_is_null() -> None:
    """An AUC without a token outside of the box, as older evaluations hold it, too."""
    whole = Grounding(pointing=1.0, mass=1.0, lift=1.0, auc=math.nan, visual_share=0.5)
    row = json.loads(json_line(Item(id="a", correct=1.0, grounding=whole).to_json()))
    assert row["grounding"]["auc"] is None
    read = Item.from_json(row, "items.jsonl:1").grounding
    assert read is not None
    assert math.isnan(read.auc)


def test_items_of_older_evaluations_are_read() -> None:
    row = {"id": 7, "question": "?", "completion": "on and", "prediction": None, "correct": 0, "tokens": 4}
    item = Item.from_json(row, "items.jsonl:3")
    assert (item.id, item.correct, item.unparsed, item.cluster, item.layers) == ("7", 0.0, True, "", None)
    assert not Item.from_json({"id": "b", "correct": 1}, "items.jsonl:1").unparsed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corect": 1.0}, r"items\.jsonl:2: unknown field 'corect'"),
        ({"correct": None}, r"items\.jsonl:2: field 'correct': expected a number from 0 to 1, found None"),
        ({"correct": "1"}, r"items\.jsonl:2: field 'correct': expected a number from 0 to 1, found '1'"),
        ({"correct": True}, r"items\.jsonl:2: field 'correct'"),
        ({"correct": 1.25}, r"items\.jsonl:2: item 'x': its score is 1\.25"),
        ({"correct": math.nan}, r"items\.jsonl:2: item 'x': its score is nan"),
        ({"truncated": "no"}, r"items\.jsonl:2: field 'truncated': expected true or false, found 'no'"),
        ({"tokens": True}, r"items\.jsonl:2: field 'tokens': expected a whole number or null"),
        ({"question": 3}, r"items\.jsonl:2: field 'question': expected a text, found 3"),
        ({"grounding": {"mass": 0.1}}, r"field 'grounding': expected numbers called pointing, mass, lift, auc"),
        ({"layers": 3}, r"field 'layers': expected a list with the grounding of every layer"),
    ],
)
def test_what_is_no_item_names_file_line_and_field(tmp_path: Path, change: dict, said: str) -> None:
    good = {"id": "x", "correct": 1.0}
    (tmp_path / "items.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(DataError, match=said):
        list(read_items(tmp_path / "items.jsonl"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": 1, "cor', r"items\.jsonl:1: not a line of JSON"),
        ("[1]", r"items\.jsonl:1: expected an object"),
        ('{"correct": 1}', r"items\.jsonl:1: field 'id' is missing"),
        ('{"id": "a"}', r"items\.jsonl:1: field 'correct' is missing"),
    ],
)
def test_a_line_that_holds_no_item_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "items.jsonl").write_text(line)
    with pytest.raises(DataError, match=said):
        list(read_items(tmp_path / "items.jsonl"))


#: Of each field, values of other kinds, besides the objects and lists that none of them takes but `probes` and `layers`.
WRONG = {
    "step": ["1", 1.5, True, None], "id": [None, 1.5, True], "question": [1, None], "solution": [1, None],
    "completion": [1, None], "prediction": [1, True], "correct": ["1", None, True], "unparsed": [1, None, "true"],
    "truncated": [0, None, "no"], "tokens": ["3", 3.5, True], "cluster": [7, None], "grounding": [1, "x", []],
    "layers": [{}, "x", 1], "probes": [[], "x", 1],
}  # fmt: skip
NULLABLE = {"prediction", "tokens", "grounding", "layers", "probes"}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_takes_its_own_kind_alone(name: str) -> None:
    line = {"id": "1", "correct": 1.0}
    values = WRONG[name] if name in ("layers", "grounding", "probes") else [*WRONG[name], {}, []]
    for value in values:
        with pytest.raises(DataError, match=rf"^i:1: field '{name}': expected .*(or null)?, found"):
            Item.from_json(line | {name: value}, "i:1")
    if name in NULLABLE:
        assert getattr(Item.from_json(line | {name: None}, "i:1"), name) is None


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, ral.evaluate.items, ral.evaluate.comparison; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
