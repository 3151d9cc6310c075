"""The registry of the testbed's sets: what recipes, evaluations, cold starts and the planner read of it is the same."""

from __future__ import annotations

import pytest
from experiments.testbed.cold_start import SOURCES

from ral.data.record import DataError
from ral.evaluate.tasks.selection import find_task
from ral.testbed.rings import ring_records
from ral.testbed.sets import COLD_START_SEED, SEEDS, SETS, count_data, drawn, find_set, load_data


def test_a_slice_holds_the_first_records_of_the_whole() -> None:
    assert [r.id for r in load_data("needles[:5]", "train")] == [r.id for r in load_data("needles", "train")[:5]]
    assert [r.id for r in load_data("rings[:3]", "test")] == [r.id for r in ring_records(3, SEEDS["test"])]
    mixed = load_data(["rings[:2]", "needles[:4]"], "train")
    assert [r.id.split("-")[0] for r in mixed] == ["rings"] * 2 + ["needles"] * 4


def test_purposes_share_no_record() -> None:
    used = [
        {r.id for r in records}
        for records in (
            load_data("needles[:40]", "train"), load_data("needles[:40]", "test"), SETS["needles"].evaluated(40, 0),
            SETS["needles"].evaluated(40, 1), SETS["needles"].worked(40, COLD_START_SEED),
        )
    ]  # fmt: skip
    assert len(set().union(*used)) == 5 * 40


@pytest.mark.parametrize(("source", "known"), [("rings", None), ("rings[:7]", 7), ("easy-vqa[:12]", 12)])
def test_a_source_names_a_set_and_a_number(source: str, known: int | None) -> None:
    found = find_set(source)
    assert found is not None
    assert found == (SETS[source.split("[")[0]], known)


@pytest.mark.parametrize("source", ["rings.jsonl", "squares[:3]", "rings[3:]", "rings[:-1]", "owner/rings"])
def test_another_source_names_none(source: str) -> None:
    assert find_set(source) is None


def test_no_records_and_more_than_there_are_are_refused() -> None:
    with pytest.raises(DataError, match=r"rings\[:0\]: ask for at least one"):
        load_data("rings[:0]", "train")
    pytest.importorskip("easy_vqa")
    with pytest.raises(DataError, match=r"the test split has 9,673 records"):
        load_data("easy-vqa[:9674]", "test")
    assert len(load_data("easy-vqa[:9673]", "test")) == 9673


def test_records_are_counted_without_being_drawn(tmp_path, monkeypatch) -> None:
    (tmp_path / "two.jsonl").write_text('{"problem": "1+1?", "solution": "2"}\n' * 2)
    assert count_data("easy-vqa") == 38_575
    assert count_data(["rings", "told[:10]", str(tmp_path / "two.jsonl")]) == 4096 + 10 + 2
    assert count_data(["rings", "owner/on-the-hub"]) is None


def test_a_new_set_is_known_to_all_that_read_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    small = drawn("small-rings", lambda n, seed: ring_records(n, seed, rings=2), train=6, test=4)
    monkeypatch.setitem(SETS, "small-rings", small)
    assert [len(load_data("small-rings", split)) for split in ("train", "test")] == [6, 4]
    assert count_data("small-rings") == 6
    assert len(list(find_task("small-rings").records())) == 4
    assert len(list(find_task("small-rings", n=9).records())) == 9


def test_whatever_is_taught_is_a_set_or_a_recital() -> None:
    assert SOURCES.keys() == SETS.keys() | {"recitals"}
