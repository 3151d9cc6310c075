from __future__ import annotations

from typing import Any

import pytest

from ral.errors import RunError
from ral.runs.resume import refuse_changes

SETTINGS = {
    "model": "m", "data": "a.jsonl", "learning_rate": 1e-5, "max_steps": 10, "save_steps": 2,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
}  # fmt: skip
FACTS = {"data": "f00d", "processes": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 20, "save_steps": 4, "logging_steps": 5, "eval_data": "held-out.jsonl"},
        {"data": "moved/a.jsonl", "data_root": "moved"},
        {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
    ],
)
def test_length_records_and_place_may_change(changes: dict[str, Any]) -> None:
    refuse_changes(SETTINGS, SETTINGS | changes, FACTS, FACTS)


def test_a_batch_may_be_spread_over_other_processes_but_not_grow() -> None:
    halved = SETTINGS | {"gradient_accumulation_steps": 1}
    refuse_changes(SETTINGS, halved, FACTS, FACTS | {"processes": 4})
    with pytest.raises(ValueError, match=r"completions per step .*: 32 → 16"):
        refuse_changes(SETTINGS, halved, FACTS, FACTS)


def test_every_other_change_is_named_with_both_values() -> None:
    changed = SETTINGS | {"learning_rate": 2e-5, "beta": 0.1}
    del changed["model"]
    with pytest.raises(ValueError, match=r"beta: not set → 0.1; learning_rate: 1e-05 → 2e-05; model: 'm' → not set"):
        refuse_changes(SETTINGS, changed, FACTS, FACTS)


def test_other_data_under_the_same_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training data \(a.jsonl\) is not what the run was started with"):
        refuse_changes(SETTINGS, SETTINGS, FACTS, FACTS | {"data": "beef"})


def test_a_run_of_an_earlier_version_goes_on_unless_it_used_what_was_removed() -> None:
    old = {"model": "m", "explore_keys": "visual", "attention_schedule": "constant"}
    refuse_changes(old, {"model": "m"}, {}, {})
    with pytest.raises(RunError, match=r"attention_schedule: 'linear' → not set"):
        refuse_changes({**old, "attention_schedule": "linear"}, {"model": "m"}, {}, {})
