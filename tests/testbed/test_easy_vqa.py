from __future__ import annotations

import sys

import pytest

from ral.errors import DataError
from ral.testbed.easy_vqa import easy_vqa_records, majority_baseline
from ral.testbed.rings import ring_records


@pytest.fixture(autouse=True)
def _package(request: pytest.FixtureRequest) -> None:
    if "without_package" not in request.keywords:
        pytest.importorskip("easy_vqa")


@pytest.mark.parametrize(
    ("split", "n", "baseline"), [("train", 38_575, 14_229 / 38_575), ("test", 9_673, 3_611 / 9_673)]
)
def test_size_and_majority_of_each_split(split: str, n: int, baseline: float) -> None:
    records = easy_vqa_records(split)  # type: ignore[arg-type]
    assert len(records) == n
    assert majority_baseline(records) == ("yes", baseline)


def test_a_record_asks_first_and_shows_after() -> None:
    record = easy_vqa_records("train")[0]
    assert (record.id, record.problem, record.solution) == (
        "easy-vqa-train-0",
        "what is the blue shape? <image>",
        "rectangle",
    )
    assert record.images[0].is_file()  # type: ignore[union-attr]


def test_a_draw_depends_on_its_seed_alone() -> None:
    draw = easy_vqa_records("test", n=20, seed=3)
    assert draw == easy_vqa_records("test", n=20, seed=3) != easy_vqa_records("test", n=20, seed=4)
    assert len({record.id for record in draw}) == 20


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(DataError, match="no split 'validation'"):
        easy_vqa_records("validation")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 to 9673 questions"):
        easy_vqa_records("test", n=9_674)


def test_the_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[easy-vqa\]'"):
        easy_vqa_records("test")


def test_majority_needs_records() -> None:
    with pytest.raises(DataError, match="no records"):
        majority_baseline([])
    assert majority_baseline(ring_records(1, seed=0))[1] == 1.0
