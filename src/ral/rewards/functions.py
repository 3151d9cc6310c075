"""Reward functions: registered by name, or a user's own function with TRL's signature.

A reward function is called as `fn(prompts=…, completions=…, **columns)`, all of them lists of equal length,
and returns one float per completion, or None where it does not apply. Columns are `solution`, `problem_type`,
`options`, `images` and whatever else the data holds; `trainer_state`, `log_extra` and `log_metric` are TRL's. The default is
0.9 · accuracy + 0.1 · format, as in the paper. `ral.rewards.calls` makes the calls.

`strict` resists reward hacking. Only the last complete `<answer>` outside the thinking counts. So an answer hidden in the
thinking earns nothing, and several answers earn the reward of the last one. Two letters, two numbers or two boxes are no
answer. The format reward wants each tag exactly once, with content.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

from ral.data.record import ProblemType
from ral.rewards.answers import SCORERS, Mode, judge
from ral.rewards.arguments import of_record as of_record  # their older address
from ral.rewards.arguments import text_of
from ral.rewards.calls import (
    TIME_LIMIT,
    Arguments,
    RewardError,
    RewardFunction,
    RewardLog,
    is_async,
    run_reward,
    running,
)
from ral.rewards.calls import call_with_limit as call_with_limit
from ral.rewards.models import as_reward, is_model, is_unnamed, load_model, name_of
from ral.rewards.overlong import OVERLONG, SoftOverlongPunishment

#: Share of a call's time after which `accuracy` scores no further completion: at its end the run would stop.
SCORING_SHARE = 0.5


@dataclass(frozen=True)
class _Scoring:
    """A group being scored: the seconds of one call, and the completions whose scorer failed, by number."""

    time_limit: float = TIME_LIMIT
    failed: set[int] = field(default_factory=set)


_scoring: ContextVar[_Scoring | None] = ContextVar("scoring", default=None)

_BETWEEN = re.compile(r"</think>\s*<answer>")
_TAG = re.compile(r"</?(?:think|answer)>")


# ------------------------------------------------------------------------------------------- the functions


def accuracy(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    solution: Sequence[str],
    solutions: Sequence[Sequence[str]] | None = None,
    problem_type: Sequence[ProblemType] | None = None,
    options: Sequence[Sequence[str]] | None = None,
    mode: Mode = "strict",
    think: bool = True,
    think_opened: bool | None = None,
    **columns: Any,
) -> list[float]:
    """Score each completion's answer in [0, 1], by the problem type of its record.

    Where a record has several valid `solutions`, the one that scores best counts. A completion whose scorer fails, or whose
    turn comes when `SCORING_SHARE` of the time limit is over, scores 0 and is counted (`GroupScore.failed`).
    """
    scoring = _scoring.get() or _Scoring()
    deadline = time.monotonic() + SCORING_SHARE * scoring.time_limit
    scores = []
    for i, completion in enumerate(completions):
        verdicts = [
            judge(
                _whole(text_of(completion), think_opened),
                valid,
                problem_type[i] if problem_type else "free-form",
                options=(options[i] or ()) if options else (),
                question=text_of(prompts[i]),
                mode=mode,
                think=think,
            )
            for valid in (solutions[i] if solutions else [solution[i]])
            if time.monotonic() < deadline
        ]
        if not verdicts or any(verdict.failed for verdict in verdicts):
            scoring.failed.add(i)
        scores.append(max((verdict.score for verdict in verdicts), default=0.0))
    return scores


def format(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    mode: Mode = "strict",
    think: bool = True,
    think_opened: bool | None = None,
    **columns: Any,
) -> list[float]:
    """1 for a completion in the form that the prompt asks for, else 0.

    `think=True`: `<think>…</think><answer>…</answer>` and nothing else; `compat` is Video-R1's full match,
    `strict` also wants each tag once, around something. `think=False`: something, and none of those tags.
    `think_opened` says whether the prompt ends in `<think>`, so that completions start after it; None: both are accepted.
    """
    return [float(well_formed(text_of(completion), mode, think, think_opened)) for completion in completions]


def well_formed(text: str, mode: Mode = "strict", think: bool = True, think_opened: bool | None = None) -> bool:
    """Whether one completion has the form that the prompt asks for; see `format`."""
    if not think:
        return bool(text.strip()) and not _TAG.search(text)
    text = _whole(text, "<think>" not in text if think_opened is None else think_opened)
    if mode == "compat":
        # Video-R1: a full match of <think>.*?</think>\s*<answer>.*?</answer>, which would be tried at every pair of tags.
        inner = text.removeprefix("<think>").removesuffix("</answer>")
        return len(inner) == len(text) - len("<think></answer>") and _BETWEEN.search(inner) is not None
    if _TAG.findall(text) != ["<think>", "</think>", "<answer>", "</answer>"]:
        return False
    before, thought, between, answer, after = _TAG.split(text)
    return bool(thought.strip() and answer.strip()) and not (before + between + after).strip()


def _whole(text: str, think_opened: bool | None) -> str:
    """The model's turn: a completion with the `<think>` that its prompt ends in, if it does."""
    return "<think>" + text if think_opened else text


def _accuracy_as(kind: ProblemType) -> RewardFunction:
    def scored(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        columns["problem_type"] = [kind] * len(completions)
        return accuracy(prompts, completions, **columns)

    scored.__doc__ = f"`accuracy` with every record scored as {kind}."
    return scored


def _with_settings(fn: RewardFunction, mode: Mode, think: bool, think_opened: bool | None) -> RewardFunction:
    """A registered function that reads the columns it knows. The settings are the run's, whatever the data has."""

    def scored(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        known = {name: columns[name] for name in _KNOWN_COLUMNS if name in columns}
        return fn(prompts, completions, **known, mode=mode, think=think, think_opened=think_opened)

    return scored


#: The columns that registered functions read.
_KNOWN_COLUMNS = ("solution", "solutions", "problem_type", "options")

#: Reward functions by the name a recipe gives them. They also take `mode`, `think` and `think_opened`.
REGISTRY: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "format": format,
    **{kind.replace(" ", "_").replace("-", "_").lower(): _accuracy_as(kind) for kind in SCORERS["strict"]},
}


# --------------------------------------------------------------------------------------------- calling them


@dataclass(frozen=True)
class Reward:
    """A reward function with the `name` it is logged under and its `weight` in the total.

    `reads_words`: it is one of this package, which takes prompts and completions as texts and no media.
    """

    name: str
    fn: RewardFunction
    weight: float = 1.0
    reads_words: bool = False


@dataclass(frozen=True)
class GroupScore:
    """`total` has one reward per completion; `parts` has the values of each function (None: not applicable).

    `failed` is how many completions a scorer of `accuracy` failed on, which scores 0. `log` is what functions logged besides.
    """

    total: list[float]
    parts: dict[str, list[float | None]]
    failed: int = 0
    log: RewardLog = field(default_factory=lambda: RewardLog(0))


def build_rewards(
    functions: Sequence[str | RewardFunction] | None = None,
    weights: Sequence[float] | None = None,
    *,
    mode: Mode = "strict",
    think: bool = True,
    think_opened: bool | None = None,
    max_completion_length: int | None = None,
    soft_punish_cache: int | None = None,
    device: Any = "cpu",
) -> list[Reward]:
    """The rewards of a run: registered names, `package.module:function`, `file.py:function`, callables, and reward models.

    A reward model is a folder or hub id (`owner/name`) of a sequence classification model with one label, or such a model. Default:
    accuracy and format, weighted 0.9 and 0.1; given functions weigh 1 each unless `weights` says otherwise. `think_opened`: as
    in `format`. A run gives its rewards whole turns, so it says False. `max_completion_length`, `soft_punish_cache`: of
    `soft_overlong_punishment`. `device`: of reward models.

    Raises `RewardError` for an unknown name, two functions of one name, or weights that do not fit.
    """
    if functions is None:
        functions = ["accuracy", "format"]
        weights = [0.9, 0.1] if weights is None else weights
    if weights is None:
        weights = [1.0] * len(functions)
    if len(weights) != len(functions) or not all(math.isfinite(weight) for weight in weights):
        raise RewardError(f"{len(functions)} reward functions but weights {list(weights)}; give one number for each")
    overlong = _overlong(functions, max_completion_length, soft_punish_cache)
    rewards: list[Reward] = []
    for function, weight in zip(functions, weights, strict=True):
        if function == OVERLONG:
            rewards.append(Reward(OVERLONG, overlong, float(weight), reads_words=True))
            continue
        fn = load_reward(function, device) if isinstance(function, str) else as_reward(function, device)
        name = function.rpartition(":")[2] if isinstance(function, str) and ":" in function else name_of(fn)
        name = function if isinstance(function, str) and function in REGISTRY else name
        if not isinstance(function, str) and is_unnamed(function):
            name = _numbered(name, [reward.name for reward in rewards])
        registered = fn in REGISTRY.values()
        fn = _with_settings(fn, mode, think, think_opened) if registered else fn
        rewards.append(Reward(name, fn, float(weight), reads_words=registered))
    names = [reward.name for reward in rewards]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise RewardError(f"two reward functions are called {repeated.pop()!r}; rename one, metrics are logged by name")
    return rewards


def highest_total(rewards: Sequence[Reward]) -> float:
    """The highest reward that a completion can earn; infinite where a function is not one of this package, whose range is known."""
    if not all(reward.reads_words for reward in rewards):
        return math.inf
    ranges = [(-1.0, 0.0) if reward.name == OVERLONG else (0.0, 1.0) for reward in rewards]
    bounds = [
        max(reward.weight * low, reward.weight * high) for reward, (low, high) in zip(rewards, ranges, strict=True)
    ]
    return sum(bounds)


def _overlong(functions: Sequence[Any], longest: int | None, cache: int | None) -> Any:
    """The reward `soft_overlong_punishment`, if it is named. Raises RewardError unless it and `soft_punish_cache` come together."""
    named = any(function == OVERLONG for function in functions)
    if not named:
        if cache is not None:
            raise RewardError(
                f"soft_punish_cache={cache} does nothing without the reward {OVERLONG}; name it in reward_funcs"
            )
        return None
    if longest is None or cache is None:
        raise RewardError(
            f"the reward {OVERLONG} needs soft_punish_cache, the tokens before max_completion_length over which it falls from 0 to −1"
        )
    return SoftOverlongPunishment(longest, cache)


def _numbered(name: str, taken: Sequence[str]) -> str:
    """The name, or with the first number from 2 on that makes it a new one."""
    return next(one for one in chain([name], (f"{name}_{n}" for n in count(2))) if one not in taken)


def load_reward(name: str, device: Any = "cpu") -> RewardFunction:
    """Load a reward: a registered name, `package.module:function`, `path/to/file.py:function`, or a reward model's folder or hub id."""
    if name in REGISTRY:
        return REGISTRY[name]
    home, colon, attribute = name.rpartition(":")
    if not colon:
        if is_model(name):
            return load_model(name, device)
        raise RewardError(
            f"no reward is called {name!r}; known are {', '.join(REGISTRY)}, {OVERLONG}, or give file.py:function or a reward "
            "model's folder"
        )
    try:
        if home.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(home).stem, home)
            if spec is None or spec.loader is None:
                raise FileNotFoundError(home)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(home)
        return cast(RewardFunction, getattr(module, attribute))
    except Exception as error:
        raise RewardError(f"reward {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


def score_group(
    rewards: Sequence[Reward],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    time_limit: float = TIME_LIMIT,
) -> GroupScore:
    """Call every reward function and add up what they return, weighted; None adds nothing.

    Raises `RewardError` when a function fails, or when no function applies to a completion.
    """
    return score_groups(rewards, [Arguments(prompts, completions, columns)], time_limit)[0]


def score_groups(
    rewards: Sequence[Reward], groups: Sequence[Arguments], time_limit: float = TIME_LIMIT, trainer_state: Any = None
) -> list[GroupScore]:
    """`score_group` for several groups. All calls of `async def` functions run at the same time, beside those of the others.

    Args:
        time_limit: seconds of one call; all calls of `async def` functions together have so many for each group.

    Raises `RewardError`, which says in `group` what it happened on.
    """
    logs = [RewardLog(len(group.completions)) for group in groups]
    later = [(n, reward) for n in range(len(groups)) for reward in rewards if is_async(reward.fn)]
    parts: list[dict[str, list[float | None]]] = [{} for _ in groups]
    failed: list[int] = []
    calls = [(reward.fn, reward.name, groups[n], logs[n]) for n, reward in later]
    with running(calls, trainer_state) as started:
        for n, (group, log) in enumerate(zip(groups, logs, strict=True)):
            try:
                found, failures = _score_now(rewards, group, time_limit, trainer_state, log)
            except RewardError as error:
                error.group = n
                raise
            parts[n] |= found
            failed.append(failures)
        try:
            answers = started.results(time_limit * len(groups))
        except RewardError as error:
            error.group = later[error.group][0]
            raise
    for (n, reward), values in zip(later, answers, strict=True):
        parts[n][reward.name] = values
    scores = []
    for n, found in enumerate(parts):
        ordered = {reward.name: found[reward.name] for reward in rewards}
        scores.append(GroupScore(_total(rewards, ordered, n), ordered, failed[n], logs[n]))
    return scores


def _score_now(
    rewards: Sequence[Reward], group: Arguments, time_limit: float, trainer_state: Any, log: RewardLog
) -> tuple[dict[str, list[float | None]], int]:
    """The values of all functions that are not `async def`, and the number of completions that a scorer failed on."""
    scoring = _Scoring(time_limit)
    token = _scoring.set(scoring)
    parts = {}
    try:
        for one in rewards:
            if not is_async(one.fn):
                prompts, completions = (
                    group.words if one.reads_words and group.words else (group.prompts, group.completions)
                )
                parts[one.name] = run_reward(
                    one.fn, one.name, prompts, completions, group.columns, time_limit=time_limit,
                    trainer_state=trainer_state, log=log,
                )  # fmt: skip
    finally:
        _scoring.reset(token)
    return parts, len(scoring.failed)


def _total(rewards: Sequence[Reward], parts: Mapping[str, Sequence[float | None]], group: int) -> list[float]:
    total = []
    for i in range(max(map(len, parts.values()), default=0)):
        values = [(reward.weight, parts[reward.name][i]) for reward in rewards]
        applicable = [weight * value for weight, value in values if value is not None]
        if not applicable:
            error = RewardError(f"no reward applies to completion {i}: {', '.join(parts)} all returned None")
            error.group = group
            raise error
        total.append(sum(applicable))
    return total
