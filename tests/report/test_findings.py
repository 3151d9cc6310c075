from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ral.report import findings
from ral.report.artefacts import Arm, Evaluation, Experiment


def arm(name: str, correct: list[float], ci: tuple[float, float] | None = None, ids: str = "item") -> Arm:
    accuracy = float(np.mean(correct))
    low, high = ci or (accuracy - 0.05, accuracy + 0.05)
    summary = {"n": len(correct), "accuracy": accuracy, "ci": [low, high], "majority": 0.2}
    items = {f"{ids}{index}": {"correct": value} for index, value in enumerate(correct)}
    return Arm(name, name.upper(), Path(name), evaluations={"rings": Evaluation("rings", Path(name), summary, items)})


def compare(before: Arm, after: Arm) -> findings.Comparison:
    found = findings.compare(Experiment("test", [before, after], "rings"), "rings", 1, 0)
    assert found is not None
    return found


def test_separate_intervals_are_clear_of_noise() -> None:
    found = compare(arm("start", [1.0] * 49 + [0.0] * 51), arm("grpo", [1.0] * 68 + [0.0] * 32))
    assert (found.verdict, found.clear) == ("clear of item noise", True)
    assert found.difference == pytest.approx(0.19)
    assert (found.fixed, found.broken) == (19, 0)
    # By hand: 19 differences of 1 and 81 of 0 have mean 0.19 and standard deviation 0.39428.
    assert found.interval == pytest.approx((0.19 - 1.96 * 0.039428, 0.19 + 1.96 * 0.039428), abs=1e-5)


def test_overlapping_intervals_are_within_noise_when_the_paired_difference_may_be_zero() -> None:
    found = compare(arm("grpo", [1.0, 0.0] * 50), arm("ral", [0.0, 1.0] * 49 + [1.0, 1.0]))
    assert (found.verdict, found.clear) == ("within noise", False)


def test_overlap_with_a_paired_difference_above_zero_is_said_as_such() -> None:
    found = compare(arm("grpo", [1.0] * 60 + [0.0] * 40), arm("ral", [1.0] * 68 + [0.0] * 32))
    assert (found.verdict, found.clear) == ("intervals overlap", False)


def test_without_the_same_items_nothing_is_paired() -> None:
    found = compare(arm("grpo", [1.0, 0.0] * 50), arm("ral", [1.0, 0.0] * 50, ids="other"))
    assert (found.interval, found.fixed, found.verdict) == (None, None, "within noise")


def test_without_intervals_nothing_is_concluded() -> None:
    before, after = arm("start", [0.0] * 30), arm("grpo", [1.0] * 30)
    after.evaluations["rings"].summary["ci"] = [float("nan"), 1.0]
    assert compare(before, after).verdict == "no interval, no conclusion"


def test_headline_names_arms_that_were_not_evaluated() -> None:
    experiment = Experiment("test", [arm("start", [1.0, 0.0] * 10), Arm("grpo", "GRPO", Path("grpo"))], "rings")
    parts = findings.headline(experiment, findings.rows(experiment, "rings"))
    assert [part[:2] for part in parts] == [("START", "50\u202f%"), ("GRPO", "not evaluated")]


def test_caveats_say_how_weak_the_attention_term_was() -> None:
    weak = Arm("ral-old", "RAL (old)", Path("x"), metrics=[{"step": 1, "grad/attention_to_token": 2e-6}])
    experiment = Experiment("test", [weak], None)
    notes = " ".join(findings.caveats(experiment, None, findings.rows(experiment, None)))
    assert "2·10⁻⁶ × that of the token loss. At this strength it can hardly steer training." in notes
    assert "nothing follows about what the model learned" in notes
