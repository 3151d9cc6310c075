"""What a run that goes on is warned of."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ral.training.learning_warnings import WINDOW, WITHOUT_REWARD, LearningWarnings


def warned(
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    rows: list[dict[str, float]],
    coef: float | None = 1.0,
    source: str = "data",
) -> list[str]:
    warnings, state = LearningWarnings(), TrainerState(is_world_process_zero=True)
    args = TrainingArguments(output_dir=str(tmp_path))
    if coef is not None:
        args.attention_coef = coef  # type: ignore[attr-defined]
    args.evidence_from = source  # type: ignore[attr-defined]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for row in rows:
            state.global_step += 1
            warnings.on_log(args, state, TrainerControl(), {"loss": 0.0, **row})
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("first", "later", "told"),
    [
        ({"reward": 0.8}, {"reward": 0.1}, "reward has collapsed"),
        ({}, {"groups_without_signal": 1.0}, "equal rewards"),
        ({}, {"grad/attention_norm": 0.0}, "attention term has no gradient"),
        ({}, {"grad/attention_to_token": 50.0}, "more than ten times"),
    ],
)
def test_a_cause_is_told_once_with_advice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: dict[str, float], later: dict[str, float], told: str
) -> None:
    [message] = warned(caplog, tmp_path, [first] * WINDOW + [later] * 3 * WINDOW)
    assert told in message
    assert message.endswith(".")


@pytest.mark.parametrize(("coef", "told"), [(None, 0), (0.0, 0), (0.1, 1)])
def test_a_run_without_an_attention_term_hears_nothing_of_its_gradient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, coef: float | None, told: int
) -> None:
    """Neither where λ is 0 nor where the settings know no λ, as in fine-tuning."""
    assert len(warned(caplog, tmp_path, [{"grad/attention_norm": 0.0}] * WINDOW, coef)) == told


@pytest.mark.parametrize(
    ("name", "before", "at", "beyond"),
    [
        ("reward", 0.8, 0.4, 0.39),
        ("groups_without_signal", 0.1, 0.9, 0.91),
        ("grad/attention_to_token", 1.0, 10.0, 10.1),
    ],
)
def test_a_cause_begins_beyond_its_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, before: float, at: float, beyond: float
) -> None:
    for value, told in ((at, 0), (beyond, 1)):
        rows = [{name: before}] * WINDOW + [{name: value}] * WINDOW
        assert len(warned(caplog, tmp_path, rows)) == told


def test_a_good_run_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The paper's anchor has no gradient in every first inner update, and rewards go up and down."""
    rows = [
        {"reward": 0.5 + 0.2 * (i % 3), "groups_without_signal": 0.5, "grad/attention_norm": float(i % 2),
         "grad/attention_to_token": 0.3}
        for i in range(3 * WINDOW)
    ]  # fmt: skip
    assert warned(caplog, tmp_path, rows) == []


@pytest.mark.parametrize("at", [0, WINDOW - 1, WINDOW, 2 * WINDOW])
def test_one_bad_batch_is_no_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int) -> None:
    """Nor is what begins with one, or has logged too little to be judged."""
    good = {"reward": 0.8, "groups_without_signal": 0.4, "grad/attention_norm": 0.1, "grad/attention_to_token": 0.5}
    bad = {"reward": 0.0, "groups_without_signal": 1.0, "grad/attention_norm": 0.0, "grad/attention_to_token": 150.0}
    rows = [bad if i == at else good for i in range(3 * WINDOW)]
    assert warned(caplog, tmp_path, rows) == []
    assert warned(caplog, tmp_path, [bad] * (WINDOW - 1)) == []


NOTHING = {"reward": 0.0, "reward_std": 0.0}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({}, "check the reward function"),
        ({"truncated": 0.9}, "raise it"),
        ({"reward/format": 0.0, "truncated": 0.1}, "none has the tags"),
    ],
)
def test_ten_steps_without_a_reward_are_said_at_once_with_reasons(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: dict[str, float], reason: str
) -> None:
    [message] = warned(caplog, tmp_path, [NOTHING | rows] * WITHOUT_REWARD)
    assert message.startswith("step 10: all rewards have been 0 for 10 steps. Likely reasons: ")
    assert reason in message
    assert ("raise it" in message) == (rows.get("truncated", 0) > 0.5)
    assert warned(caplog, tmp_path, [NOTHING | rows] * (WITHOUT_REWARD - 1)) == []


def test_rewards_of_both_signs_are_not_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert warned(caplog, tmp_path, [{"reward": 0.0, "reward_std": 1.0}] * WITHOUT_REWARD) == []
    late = [{"reward": 0.1, "reward_std": 0.0}] + [NOTHING] * WITHOUT_REWARD
    assert warned(caplog, tmp_path, late) == []


@pytest.mark.parametrize(
    ("source", "advice"),
    [("data", "raise num_frames"), ("completion", "No completion states a box"), ("masking", "hiding a block")],
)
def test_evidence_that_is_never_known_is_told_by_its_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, advice: str
) -> None:
    unknown = {"attention/without_evidence": 1.0}
    [message] = warned(caplog, tmp_path, [unknown] * 2 * WINDOW, source=source)
    assert message.startswith(f"step {WINDOW}: no rollout has had known evidence for {WINDOW} logged steps. ")
    assert advice in message
    assert warned(caplog, tmp_path, [unknown] * 2 * WINDOW, coef=0.0, source=source) == []
    once = [unknown] * (WINDOW - 1) + [{"attention/without_evidence": 0.9}]
    assert warned(caplog, tmp_path, once + [unknown] * (WINDOW - 1), source=source) == []


def test_evidence_that_no_row_looks_at_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    idle = {"attention/without_evidence": 0.5, "attention/evidence_rows": 0.0}
    [message] = warned(caplog, tmp_path, [idle] * 2 * WINDOW, source="completion")
    assert "no row of them was trained" in message
    assert "the first box is the answer itself" in message
    assert (
        warned(
            caplog, tmp_path, [idle] * (WINDOW - 1) + [idle | {"attention/evidence_rows": 0.01}], source="completion"
        )
        == []
    )
