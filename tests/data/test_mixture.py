"""Mixtures: what an epoch takes of each source, in which order, and how recipes name sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ral.data.fingerprint import fingerprint
from ral.data.mixture import Mixture, Part, epoch_order, shares
from ral.data.named_sources import named_sets, sources_of
from ral.data.readers import as_records
from ral.data.record import Record
from ral.errors import DataError
from ral.recipe import load_recipe
from ral.testbed.sets import count_data, load_data, load_sets


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(100, 1), (300, 3)], [100, 300]),  # as the sources are
        ([(100, 1), (300, 1)], [100, 100]),  # the smaller one ends the epoch
        ([(100, 2), (300, 1)], [100, 50]),
        ([(10, 1.0), (10, 0.5), (10, 0.25)], [10, 5, 2]),
    ],
)
def test_an_epoch_takes_shares_by_weight_and_repeats_nothing(
    parts: list[tuple[int, float]], expected: list[int]
) -> None:
    assert shares([Part(*part) for part in parts]) == expected


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(3, 20), st.floats(0.5, 3)), min_size=1, max_size=3), st.integers(0, 5))
def test_epochs_go_on_where_the_one_before_stopped(given_parts: list[tuple[int, float]], seed: int) -> None:
    parts = [Part(*part) for part in given_parts]
    taken = shares(parts)
    starts = [sum(part.size for part in parts[:i]) for i in range(len(parts))]
    orders = [epoch_order(parts, seed, epoch) for epoch in range(6)]
    assert orders == [epoch_order(parts, seed, epoch) for epoch in range(6)]
    for order in orders:
        assert [
            sum(start <= place < start + part.size for place in order)
            for start, part in zip(starts, parts, strict=True)
        ] == taken
    met = Counter(place for order in orders for place in order)
    for start, part in zip(starts, parts, strict=True):
        counts = [met[place] for place in range(start, start + part.size)]
        assert max(counts) - min(counts) <= 1, "each record equally often, but for the pass that is not over"


def test_the_order_depends_on_the_seed() -> None:
    parts = [Part(30, 1.0), Part(30, 1.0)]
    assert epoch_order(parts, 0, 0) != epoch_order(parts, 1, 0)
    assert sorted(epoch_order(parts, 0, 1)) == list(range(60))


def test_a_mixture_stays_one_and_its_weights_count() -> None:
    records = [[Record(f"{name}{i}", "?", "!") for i in range(4)] for name in "ab"]
    one, other = Mixture(records, [1, 2]), Mixture(records, [1, 3])
    assert as_records(one) is one
    assert [record.id for record in one] == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
    assert len({fingerprint(one), fingerprint(other), fingerprint(list(one))}) == 3
    with pytest.raises(DataError, match="source 2 of the mixture has no records"):
        Mixture([records[0], []], [1, 1])
    with pytest.raises(DataError, match="source 1 of the mixture has so small a weight"):
        Mixture(records, [1e-3, 1])


def rows(folder: Path, name: str, n: int) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f'{{"frage": "{name} {i}?", "solution": "x"}}\n' for i in range(n)))
    return str(path)


def test_a_recipe_mixes_sources_with_options_of_their_own(tmp_path: Path) -> None:
    own = {"columns": {"problem": "frage"}}
    data: list[Any] = [{"path": rows(tmp_path, "a", 9), "max_records": 6, "weight": 2, **own}, {"path": "rings[:8]"}]
    found = load_data(data, "train")
    assert isinstance(found, Mixture)
    assert (found.parts, found[5].problem) == ((Part(6, 2.0), Part(8, 1.0)), "a 5?")
    assert count_data(data) == 6 + 3
    assert count_data({"path": "rings", "max_records": 5}) == 5
    assert type(load_data(["rings[:2]", {"path": "rings[:3]"}], "train")) is list
    sets = load_sets(
        {"own": {"path": rows(tmp_path, "b", 3), "max_records": 2, **own}, "rings": ["rings[:1]", "rings[:2]"]}
    )
    assert isinstance(sets, dict)
    assert {name: len(records) for name, records in sets.items()} == {"own": 2, "rings": 3}
    assert isinstance(load_sets("rings[:2]"), list)
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        "model: start\ndata:\n- {path: rings, weight: 2}\n- rings[:4]\neval_data: {a: rings, b: [rings]}\nuse_cpu: true\n"
    )
    loaded = load_recipe(recipe)
    assert loaded.settings()["data"] == [{"path": "rings", "weight": 2}, "rings[:4]"]
    assert loaded.settings()["eval_data"] == {"a": "rings", "b": ["rings"]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"path": "a", "wieght": 1}, r"data: a: unknown key 'wieght'; did you mean 'weight'\?"),
        ([{"path": "a", "weight": 0}], r"a: weight: expected a number above 0, got 0"),
        ({"path": "a", "max_records": 1.5}, r"max_records: expected a number above 0, got 1\.5"),
        ([{"weight": 1}], r"expected a path, or an object with a path, got"),
        (3, "expected a path"),
    ],
)
def test_sources_that_cannot_be_meant_are_refused(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        sources_of(data)


def test_held_out_data_has_no_weights() -> None:
    with pytest.raises(DataError, match="a: weight says how often training takes a source"):
        named_sets({"x": {"path": "a", "weight": 1}})
