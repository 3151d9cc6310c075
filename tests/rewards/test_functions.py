from __future__ import annotations

import math
import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ral.data.record import Record
from ral.rewards.functions import (
    REGISTRY,
    Reward,
    RewardError,
    accuracy,
    build_rewards,
    format,
    load_reward,
    of_record,
    run_reward,
    score_group,
    well_formed,
)

GOOD = "<think>t</think><answer>B</answer>"
COLUMNS: dict[str, list[Any]] = {
    "solution": ["B", "B", "B"],
    "problem_type": ["multiple choice"] * 3,
    "options": [("A. x", "B. y")] * 3,
    "level": [1, 2, 3],
}
COMPLETIONS = [GOOD, "<answer>B</answer>", "<think>t</think><answer>A</answer>"]
PROMPTS = ["?"] * 3


@pytest.mark.parametrize(
    ("text", "strict", "compat", "direct"),
    [
        (GOOD, 1, 1, 0),
        ("<think>t</think>\n<answer>B</answer>", 1, 1, 0),
        ("\n" + GOOD + "\n", 1, 0, 0),
        ("<think>one\ntwo</think><answer>B</answer>", 1, 1, 0),
        (GOOD + GOOD, 0, 1, 0),
        (GOOD + "<answer>C</answer>", 0, 1, 0),
        ("<think><think>t</think></think><answer>B</answer>", 0, 1, 0),
        ("<think><answer>B</answer></think><answer>B</answer>", 0, 1, 0),
        ("<think></think><answer>B</answer>", 0, 1, 0),
        ("<think>t</think><answer></answer>", 0, 1, 0),
        ("<think>t</think>so<answer>B</answer>", 0, 0, 0),
        ("<think>t</think><answer>B</answer> yes", 0, 0, 0),
        ("<answer>B</answer><think>t</think>", 0, 0, 0),
        ("<answer>B</answer>", 0, 0, 0),
        ("<think>t</think>", 0, 0, 0),
        ("B", 0, 0, 1),
        (" ", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_format(text: str, strict: int, compat: int, direct: int) -> None:
    assert well_formed(text, "strict") == strict
    assert well_formed(text, "compat") == compat
    assert well_formed(text, "strict", think=False) == well_formed(text, "compat", think=False) == direct


@pytest.mark.parametrize("mode", ["strict", "compat"])
@pytest.mark.parametrize(
    ("text", "unknown", "opened", "whole"),
    [
        (GOOD, True, None, True),
        ("two of them\n</think>\n\n<answer>B</answer>", True, True, False),
        ("<answer>B</answer>", False, False, False),
        ("two of them<answer>B</answer>", False, False, False),
    ],
)
def test_the_format_where_the_prompt_may_open_the_thinking(
    mode: Any, text: str, unknown: bool, opened: bool | None, whole: bool
) -> None:
    assert well_formed(text, mode) is unknown
    assert well_formed(text, mode, think_opened=False) is whole
    if opened is not None:  # Video-R1's form takes a second <think>
        assert well_formed(text, mode, think_opened=True) is opened
    [reward] = build_rewards(["format"], mode=mode, think_opened=False)
    assert reward.fn(prompts=["?"], completions=[text]) == [float(whole)]
    assert not well_formed("<think>" + text, "strict", think_opened=True)


def test_the_default_is_nine_tenths_accuracy_and_one_tenth_format() -> None:
    scored = score_group(build_rewards(), PROMPTS, COMPLETIONS, COLUMNS)
    assert scored.parts == {"accuracy": [1.0, 1.0, 0.0], "format": [1.0, 0.0, 1.0]}
    assert scored.total == pytest.approx([1.0, 0.9, 0.1])


def test_the_problem_type_is_each_completion_s_own() -> None:
    values = accuracy(
        ["?"] * 3,
        ["<answer>B.</answer>", "<answer>1,000</answer>", "<answer>[0, 0, 1, 2]</answer>"],
        solution=["B", "1000", "[0, 0, 1, 1]"],
        problem_type=["multiple choice", "numerical", "box"],
    )
    assert values == [1.0, 1.0, 0.5]


def test_the_question_says_whether_per_cent_is_meant() -> None:
    arguments: dict[str, Any] = {"solution": ["14"], "problem_type": ["numerical"], "think": False}
    assert accuracy(["How many?"], ["14%"], **arguments) == [0.0]
    assert accuracy(["What percentage?"], ["14%"], **arguments) == [1.0]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What percentage?"}]}]
    assert accuracy([messages], [[{"role": "assistant", "content": "14%"}]], **arguments) == [1.0]


def test_options_are_those_of_each_completion_s_own_record() -> None:
    """An option's text chooses its letter; no options, or none at all, leave the letter alone."""
    arguments: dict[str, Any] = {"solution": ["B"] * 3, "problem_type": ["multiple choice"] * 3, "think": False}
    options = [("A. red", "B. blue"), ("A. blue", "B. red"), None]
    assert accuracy(["?"] * 3, ["blue"] * 3, options=options, **arguments) == [1.0, 0.0, 0.0]
    assert accuracy(["?"] * 3, ["B"] * 3, options=options, **arguments) == [1.0] * 3
    assert accuracy(["?"] * 3, ["B"] * 3, **arguments) == [1.0] * 3


def test_mode_and_think_reach_the_registered_functions() -> None:
    columns = {"solution": ["B"], "problem_type": ["multiple choice"], "options": [()]}
    for mode, think, text, total in [
        ("strict", True, "<think>t</think><answer>B.</answer>", 1.0),
        ("compat", True, "<think>t</think><answer>B.</answer>", 0.1),
        ("strict", False, "B.", 1.0),
        ("compat", False, "B.", 0.1),
        ("strict", True, "B.", 0.0),
    ]:
        rewards = build_rewards(mode=mode, think=think)  # type: ignore[arg-type]
        assert score_group(rewards, ["?"], [text], columns).total == pytest.approx([total])


@pytest.mark.parametrize("name", ["mode", "think", "prompts", "completions", "completion_ids", "self", "fn", "columns"])
def test_a_column_of_the_data_reaches_no_parameter_of_a_built_in_reward(name: str) -> None:
    """Kind: the data's columns are keywords of the call, and a reward has keywords of its own."""
    for mode, think, text in [("compat", True, "<think>t</think><answer>7.</answer>"), ("strict", False, "7")]:
        rewards = build_rewards(mode=mode, think=think)  # type: ignore[arg-type]
        plain = Record("1", "How many?", "7", "numerical")
        row = replace(plain, extra={name: "compat" if mode == "strict" else "strict"})
        given, other = (score_group(rewards, *of_record(record, [text], [[1]])) for record in (plain, row))
        assert given == other
        assert given.total == pytest.approx([0.1 if think else 1.0])


def test_a_user_s_function_gets_the_columns_but_for_those_named_like_arguments() -> None:
    seen: dict[str, Any] = {}

    def look(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0] * len(completions)

    extra = {"mode": "train", "think": 3, "prompts": "p", "completions": "c", "completion_ids": "i", "solution": "s"}
    score_group(build_rewards([look]), *of_record(Record("1", "Q", "a", extra=extra), ["x", "y"], [[1], [2]]))
    assert (seen["mode"], seen["think"]) == (["train"] * 2, [3] * 2)
    assert (seen["prompts"], seen["completions"], seen["completion_ids"]) == (["Q"] * 2, ["x", "y"], [[1], [2]])
    assert seen["solution"] == ["a"] * 2


def test_of_several_valid_answers_the_best_counts() -> None:
    record = Record("1", "Which city?", "New York City", other_solutions=("NYC", "New York"))
    texts = ["NYC", "New York", "Boston"]
    scored = score_group(build_rewards(["accuracy"], think=False), *of_record(record, texts, [[1]] * 3)).total
    assert scored[:2] == [1.0, 1.0]
    assert scored[2] < 0.5


def test_hacks_earn_nothing_in_strict() -> None:
    columns = {"solution": ["B"] * 5, "problem_type": ["multiple choice"] * 5, "options": [()] * 5}
    hacks = [
        "<think>t</think><answer>A B C D</answer>",
        "<think><answer>B</answer></think>",
        "<think>t</think><answer>B</answer><answer>C</answer>",
        "<think>t</think><answer>A or B</answer>",
        "<answer>B",
    ]
    assert score_group(build_rewards(["accuracy"]), ["?"] * 5, hacks, columns).total == [0.0] * 5


def test_every_problem_type_is_a_reward_by_name() -> None:
    assert set(REGISTRY) == {
        "accuracy", "format", "multiple_choice", "numerical", "ocr", "free_form", "regression", "math", "box"
    }  # fmt: skip
    [reward] = build_rewards(["numerical"], think=False)
    assert score_group([reward], ["?"], ["1,000"], {"solution": ["1000"], "problem_type": ["OCR"]}).total == [1.0]


def test_user_functions_get_the_columns_and_may_not_apply() -> None:
    def easy(prompts: Any, completions: Any, level: list[int], **columns: Any) -> list[float | None]:
        return [1.0 if value < 2 else None for value in level]

    scored = score_group(build_rewards(["format", easy], [0.5, 2.0]), PROMPTS, COMPLETIONS, COLUMNS)
    assert scored.parts["easy"] == [1.0, None, None]
    assert scored.total == pytest.approx([2.5, 0.0, 0.5])
    with pytest.raises(RewardError, match="no reward applies to completion 1"):
        score_group(build_rewards([easy]), PROMPTS, COMPLETIONS, COLUMNS)


def test_functions_are_loaded_from_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def short(prompts, completions, **columns):\n    return [float(len(c) < 9) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mine.py:short", "mine:short"):
        [reward] = build_rewards([name])
        assert reward.name == "short"
        assert score_group([reward], ["?"] * 2, ["a", "a" * 20], {}).total == [1.0, 0.0]
    for name in ("mine.py:long", "none.py:short", "none:short"):
        with pytest.raises(RewardError, match=f"reward '{name}' cannot be loaded"):
            load_reward(name)
    with pytest.raises(RewardError, match=r"no reward is called 'acuracy'; known are accuracy, format"):
        load_reward("acuracy")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], "returned 2 values for 3 completions"),
        ([1.0, math.nan, 1.0], "returned nan for completion 1"),
        ([1.0, 1.0, math.inf], "returned inf for completion 2"),
        (["1", 1.0, 1.0], "returned '1' for completion 0"),
        ([1.0, [1.0], 1.0], "for completion 1"),
        (1.0, "returned float; it must return a list"),
        (None, "returned NoneType"),
        ("abc", "returned str"),
        ({0: 1.0}, "returned dict"),
        (torch.tensor([1.0, math.nan, 0.0]), "nan for completion 1"),
        (torch.tensor(1.0), "returned float"),
    ],
)
def test_what_is_no_reward_is_refused_by_name_and_index(returned: Any, said: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'mine' .*{said}"):
        run_reward(lambda **_: returned, "mine", PROMPTS, COMPLETIONS, COLUMNS)


@pytest.mark.parametrize("returned", [[1, 0.5, True], (1.0, 0.5, 1.0), torch.tensor([1.0, 0.5, 1.0]),
                                      [torch.tensor(1.0), torch.tensor([0.5]), 1]])  # fmt: skip
def test_numbers_of_every_kind_are_taken(returned: Any) -> None:
    assert run_reward(lambda **_: returned, "mine", PROMPTS, COMPLETIONS, COLUMNS) == [1.0, 0.5, 1.0]


def _leave(**columns: Any) -> list[float]:
    sys.exit(3)


def _divide(**columns: Any) -> list[float]:
    return [1 / 0]


@pytest.mark.parametrize(("fn", "said"), [(_leave, "SystemExit: 3"), (_divide, "ZeroDivisionError")])
def test_a_failing_function_cannot_take_the_run_down(fn: Any, said: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'mine' failed: {said}"):
        run_reward(fn, "mine", PROMPTS, COMPLETIONS, COLUMNS)


def _sleep() -> None:
    while True:
        with suppress(Exception):
            time.sleep(60)


def _backtrack() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")  # for years, without giving up the interpreter


@pytest.mark.parametrize("hang", [_sleep, _backtrack])
def test_an_endless_function_is_stopped(hang: Any) -> None:
    def endless(**columns: Any) -> list[float]:
        hang()
        return []

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(RewardError, match=r"reward 'mine' took more than 0\.2 s.*reward_timeout"):
        run_reward(endless, "mine", PROMPTS, COMPLETIONS, COLUMNS, time_limit=0.2)
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_ctrl_c_passes_through_a_function() -> None:
    def interrupted(**columns: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_reward(interrupted, "mine", PROMPTS, COMPLETIONS, COLUMNS)


def test_a_function_cannot_change_the_group_for_the_next_one() -> None:
    def greedy(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        completions.clear()
        columns["level"].clear()
        return [0.0] * 3

    scored = score_group([Reward("greedy", greedy), *build_rewards(["format"])], PROMPTS, COMPLETIONS, COLUMNS)
    assert scored.parts["format"] == [1.0, 0.0, 1.0]
    assert COLUMNS["level"] == [1, 2, 3]


def test_weights_and_names_must_fit() -> None:
    with pytest.raises(RewardError, match="2 reward functions but weights"):
        build_rewards(["accuracy", "format"], [1.0])
    with pytest.raises(RewardError, match="two reward functions are called 'format'"):
        build_rewards(["format", format])
