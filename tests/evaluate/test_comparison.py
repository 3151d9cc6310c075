from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ral.errors import DataError
from ral.evaluate.comparison import compare_runs
from ral.evaluate.items import Item
from ral.files import json_line

ASKED = {
    "task": "maps", "data": "aa", "weights": "bb", "think": True, "template": "paper", "scorer": "strict", "layer": 27,
    "max_completion_length": 1024, "num_frames": None, "probes": "", "show": 12,
}  # fmt: skip


def run(folder: Path, scores: Sequence[float], question: str = "where is {}?", **asked: object) -> Path:
    """A run evaluated on `maps`; without settings where `asked` says so."""
    place = folder / "eval" / "maps"
    place.mkdir(parents=True)
    items = [
        Item(id=f"m{i}", question=question.format(i), solution=f"{i}", correct=score, cluster=f"map {i // 2}")
        for i, score in enumerate(scores)
    ]
    (place / "items.jsonl").write_text("".join(json_line(item.to_json()) for item in items))
    if asked != {"unknown": True}:
        (place / "settings.json").write_text(json.dumps(ASKED | asked))
    return folder


def test_runs_that_were_asked_alike_are_compared_without_a_remark(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [0, 0, 0, 0, 1, 1])
    b = run(tmp_path / "b", [1, 1, 0, 0, 1, 1], weights="cc", layer=3, show=0, probes="heads")
    (sentence,) = compare_runs(a, b)
    assert sentence == (
        f"On maps (6 items in 3 clusters), {b} scores 66.7% and {a} 33.3%: +33.3 points (95% sign-flip interval -100.0 to "
        "+100.0; 2 items better, 0 worse; exact sign-flip p = 1.000, Holm-adjusted p = 1.000)."
    )


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [0, 1, 1])
    b = run(tmp_path / "b", [1, 1, 1], think=False, num_frames=16)
    (sentence,) = compare_runs(a, b)
    assert sentence.endswith("They were asked with different settings: think true and false; num_frames null and 16.")


def test_unknown_settings_are_said(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0, 1, 1], unknown=True), run(tmp_path / "b", [1, 1, 1])
    (sentence,) = compare_runs(a, b)
    assert sentence.endswith(f"How {a / 'eval/maps'} was asked and scored is not known: settings.json is missing.")


def test_a_setting_that_an_older_evaluation_lacks_is_no_difference(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0, 1, 1]), run(tmp_path / "b", [1, 1, 1], system_prompt="be brief")
    assert "different settings" not in compare_runs(a, b)[0]


def test_another_scorer_is_refused(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0, 1]), run(tmp_path / "b", [1, 1], scorer="compat")
    with pytest.raises(
        DataError, match=r"scored by strict, .* by compat: their difference would be one of the scorers"
    ):
        compare_runs(a, b)


def test_another_question_under_the_same_id_is_refused(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0, 1]), run(tmp_path / "b", [1, 1], question="what is at {}?")
    with pytest.raises(DataError, match=r"item 'm0': question is 'where is 0\?' .* different data"):
        compare_runs(a, b)


def test_a_part_of_the_items_is_compared_on_that_part(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0, 0, 1, 1]), run(tmp_path / "b", [1, 1], data="other")
    (sentence,) = compare_runs(a, b)
    assert "On maps (2 items in 1 clusters)" in sentence
    assert "2 items answered by one of them only are left out." in sentence


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0, 1]), run(tmp_path / "b", [1, 1])
    items = b / "eval/maps/items.jsonl"
    items.write_text(items.read_text() * 2)
    with pytest.raises(DataError, match="item 'm0' occurs more than once"):
        compare_runs(a, b)


def test_a_score_out_of_range_is_refused(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0, 1]), run(tmp_path / "b", [1, 1])
    items = b / "eval/maps/items.jsonl"
    items.write_text(items.read_text().replace('"correct": 1', '"correct": 100', 1))
    with pytest.raises(DataError, match=r"items\.jsonl:1: item 'm0': its score is 100"):
        compare_runs(a, b)
