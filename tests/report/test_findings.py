from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ral.evaluate.items import Item
from ral.report import findings
from ral.report.artefacts import Evaluation, Run
from ral.report.differences import Difference, difference_of, differences
from ral.report.experiment import Arm, Experiment
from ral.report.headline import Headline
from ral.report.headline import headline as headline_of
from ral.statistics import holm


def run(correct: list[float], seed: int | None = None, ids: str = "item", **changes: object) -> Run:
    accuracy = float(np.mean(correct))
    summary = {"n": len(correct), "accuracy": accuracy, "ci": [accuracy - 0.05, accuracy + 0.05], "majority": 0.2}
    items = {f"{ids}{index}": Item(id=f"{ids}{index}", correct=value) for index, value in enumerate(correct)}
    evaluation = Evaluation("rings", Path("eval"), summary | changes, items)
    config = {} if seed is None else {"attention_coef": 1.0, "seed": seed}
    return Run(Path("run"), seed, config, evaluations={"rings": evaluation})


def arm(name: str, *runs: Run) -> Arm:
    return Arm(name, name.upper(), list(runs))


def share(right: int, n: int = 100) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def compare(before: Arm, after: Arm) -> Difference:
    (found,) = differences(Experiment("test", [before, after], "rings"), "rings")
    return found


def test_one_run_each_is_compared_over_items() -> None:
    found = compare(arm("start", run(share(49))), arm("grpo", run(share(68))))
    assert (found.verdict, found.clear, found.over, found.n) == ("clear of item noise", True, "items", 100)
    assert found.difference == pytest.approx(0.19)
    assert (found.fixed, found.broken) == (19, 0)
    assert found.p == found.p_holm == pytest.approx(stats.binomtest(19, 19).pvalue)
    # By hand: 19 differences of 1 and 81 of 0 have mean 0.19 and standard deviation 0.39428.
    assert found.interval == pytest.approx((0.19 - 1.96 * 0.039428, 0.19 + 1.96 * 0.039428), abs=0.01)
    assert "START 49.0%: +19.0 points" in found.sentence


def test_a_difference_that_may_be_zero_is_within_noise() -> None:
    found = compare(arm("start", run([1.0, 0.0] * 50)), arm("ral", run([0.0, 1.0] * 49 + [1.0, 1.0])))
    assert (found.verdict, found.clear) == ("within item noise", False)


def test_without_the_same_items_nothing_is_paired() -> None:
    found = compare(arm("start", run([1.0, 0.0] * 50)), arm("ral", run([1.0, 0.0] * 50, ids="other")))
    assert (found.interval, found.fixed, found.verdict) == (None, None, "not paired, no conclusion")


def test_an_incomplete_evaluation_is_not_paired() -> None:
    assert compare(arm("start", run(share(50), n=101)), arm("ral", run(share(90), n=101))).over is None


SCORES = {"grpo": (80, 70, 78, 75), "ral": (84, 79, 80, 83)}


def seeds() -> Experiment:
    arms = [
        arm(name, *(run(share(right), seed) for seed, right in enumerate(rights))) for name, rights in SCORES.items()
    ]
    return Experiment("test", [arm("start", run(share(50))), *arms], "rings")


def test_several_seeds_are_compared_by_paired_t_intervals() -> None:
    experiment = seeds()
    found = differences(experiment, "rings")
    assert [(one.name, one.other, one.over, one.n) for one in found] == [
        ("GRPO", "START", "seeds", 4), ("RAL", "START", "seeds", 4), ("RAL", "GRPO", "seeds", 4),
    ]  # fmt: skip
    by_seed = np.subtract(SCORES["ral"], SCORES["grpo"]) / 100
    assert found[2].interval == pytest.approx(stats.t.interval(0.95, 3, by_seed.mean(), stats.sem(by_seed)), abs=1e-9)
    tests = [stats.ttest_1samp(np.array(SCORES[name]) / 100 - 0.5, 0).pvalue for name in SCORES]
    p_values = [*tests, stats.ttest_rel(SCORES["ral"], SCORES["grpo"]).pvalue]
    assert [one.p for one in found] == pytest.approx(p_values)
    assert [one.p_holm for one in found] == pytest.approx(holm(p_values))
    row = findings.table_of(experiment, "rings", found)[2]
    assert (row.seeds, row.versus_start) == (4, found[1])
    accuracies = np.array(SCORES["ral"]) / 100
    assert row.interval == pytest.approx(stats.t.interval(0.95, 3, accuracies.mean(), stats.sem(accuracies)))


def test_only_common_seeds_are_paired() -> None:
    first = arm("grpo", *(run(share(right), seed) for seed, right in enumerate((60, 61, 70))))
    second = arm("ral", *(run(share(right), seed) for seed, right in ((1, 66), (2, 74), (3, 90))))
    found = difference_of(Experiment("test", [first, second], "rings"), "rings", 1, 0)
    assert found is not None
    assert (found.n, found.difference) == (2, pytest.approx(0.045))


def test_what_is_below_the_level_only_alone_is_not_called_clear() -> None:
    arms = [
        arm(name, run(correct, 0))
        for name, correct in (("grpo", share(50)), ("a", share(56)), ("b", share(50)), ("c", share(51)))
    ]
    found = differences(Experiment("test", arms, "rings"), "rings")
    assert (found[0].p, found[0].p_holm) == pytest.approx((0.03125, 0.09375))
    assert (found[0].verdict, found[0].clear) == ("not clear: one of several looks", False)


def said(experiment: Experiment) -> str:
    return "".join(text for text, _ in headline(experiment).parts)


def test_any_two_arms_are_compared() -> None:
    """Neither start nor GRPO: the first that is given is what the others are compared with."""
    first, second = arm("lambda-1", run(share(50), 0)), arm("lambda-5", run(share(72), 0))
    found = compare(first, second)
    assert (found.name, found.other, found.over, found.fixed, found.broken) == ("LAMBDA-5", "LAMBDA-1", "items", 22, 0)
    assert said(Experiment("test", [first, second], "rings")) == (
        "The arms end at 50–72\u202f%. LAMBDA\u20115 is 22.0 points ahead of LAMBDA-1."
    )
    three = differences(Experiment("test", [first, second, arm("lambda-9", run(share(60), 0))], "rings"), "rings")
    assert [(one.name, one.other) for one in three] == [("LAMBDA-5", "LAMBDA-1"), ("LAMBDA-9", "LAMBDA-1")]
    two_starts = [arm("a", run(share(50))), arm("b", run(share(72)))]
    assert compare(*two_starts).difference == pytest.approx(0.22)


def test_two_runs_of_different_seeds_are_paired_over_their_items() -> None:
    found = compare(arm("lambda-1", run(share(50), 3)), arm("lambda-5", run(share(72), 4)))
    assert (found.over, found.n, found.p) == ("items", 100, pytest.approx(stats.binomtest(22, 22).pvalue))


def test_what_only_one_of_two_answered_is_left_out() -> None:
    part = run(share(40, n=50), 0)
    found = compare(arm("lambda-1", run(share(50), 0)), arm("lambda-5", part))
    assert (found.over, found.n, found.difference) == ("items", 50, pytest.approx(-0.2))
    assert "50 items answered by one of them only are left out." in found.sentence


def test_arms_of_different_scorers_are_not_compared() -> None:
    strict, compat = (
        run(share(right), 0, settings={"scorer": scorer}) for right, scorer in ((50, "strict"), (72, "compat"))
    )
    found = compare(arm("lambda-1", strict), arm("lambda-5", compat))
    assert (found.over, found.p, found.verdict) == (None, None, "not paired, no conclusion")
    assert found.sentence.startswith("LAMBDA-5 and LAMBDA-1 are not compared on rings. LAMBDA-1 was scored by strict")


def test_settings_that_differ_stand_in_the_sentence() -> None:
    one, other = (
        run(share(right), 0, settings={"scorer": "strict", "think": think})
        for right, think in ((50, True), (72, False))
    )
    assert compare(arm("lambda-1", one), arm("lambda-5", other)).sentence.endswith(
        "They were asked with different settings: think true and false."
    )


def test_a_clear_fall_is_no_lift() -> None:
    fallen = Experiment("test", [arm("start", run(share(80))), arm("grpo", run(share(50)))], "rings")
    assert said(fallen) == "Training moves accuracy from 80\u202f% to 50\u202f%."
    mixed = [arm("start", run(share(60))), arm("grpo", run(share(90))), arm("ral", run(share(30)))]
    assert said(Experiment("test", mixed, "rings")).startswith(
        "Training moves accuracy from 60\u202f% to 30–90\u202f%."
    )


def headline(experiment: Experiment) -> Headline:
    found = differences(experiment, experiment.task)
    return headline_of(experiment, experiment.task, findings.table_of(experiment, experiment.task, found), found)


def test_the_headline_says_what_was_found_and_how_sure_it_is() -> None:
    line = headline(seeds())
    text = "".join(text for text, _ in line.parts)
    assert text == "Training lifts accuracy from 50\u202f% to 76–82\u202f%. RAL is 5.8 points ahead of GRPO."
    assert line.certainty.startswith("Over 4 paired seeds with 100 held-out items each")
    alike = [arm("start", run(share(40))), arm("grpo", run(share(80))), arm("ral", run(share(81)))]
    assert "".join(text for text, _ in headline(Experiment("test", alike, "rings")).parts).endswith(
        "40\u202f% to 80–81\u202f%. Nothing sets RAL apart from GRPO."
    )
    single = headline(
        Experiment(
            "test", [arm("start", run(share(40))), arm("grpo", run(share(80))), arm("ral", run(share(95)))], "rings"
        )
    )
    assert "".join(text for text, _ in single.parts).endswith("RAL is 15.0 points ahead of GRPO.")
    assert "not what another seed would" in single.certainty


def test_the_headline_of_an_unevaluated_and_of_a_running_run() -> None:
    logged = Run(Path("run"), 0, {"max_steps": 160}, metrics=[{"step": 1}, {"step": 40}])
    assert headline(Experiment("test", [arm("grpo", logged)], None)).parts == [("Trained, not yet evaluated.", None)]
    line = headline(Experiment("test", [arm("grpo", logged)], None, running=True))
    assert "".join(text for text, _ in line.parts) == "In training: GRPO step 40 of 160."


def test_caveats_say_how_weak_the_attention_term_was() -> None:
    weak = Arm("ral-old", "RAL (old)", [Run(Path("x"), metrics=[{"step": 1, "grad/attention_to_token": 2e-6}])])
    experiment = Experiment("test", [weak], None)
    notes = " ".join(findings.caveats(experiment, None, findings.table_of(experiment, None)))
    assert "2·10⁻⁶ × that of the token loss. At this strength it can hardly steer training." in notes
    assert "nothing follows about what the model learned" in notes
