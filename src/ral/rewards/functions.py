"""Reward functions: registered by name, or a user's own function with TRL's signature.

A reward function is called as `fn(prompts=…, completions=…, **columns)`, all of them lists of equal length,
and returns one float per completion, or None where it does not apply. Columns are `solution`, `problem_type`,
`options` and whatever else the data holds. The default is 0.9 · accuracy + 0.1 · format, as in the paper.

`strict` resists reward hacking. Only the last complete `<answer>` outside the thinking counts. So an answer hidden in the
thinking earns nothing, and several answers earn the reward of the last one. Two letters, two numbers or two boxes are no
answer. The format reward wants each tag exactly once, with content.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import numbers
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

from ral.data.record import ProblemType, Record
from ral.errors import RalError
from ral.rewards.answers import SCORERS, Mode, judge

RewardFunction = Callable[..., Sequence[float | None]]

#: Seconds one call of one reward function may take, for a whole group.
TIME_LIMIT = 60.0

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


class RewardError(RalError, ValueError):
    """A reward function failed or returned something that is not a reward; the message names it and the index."""


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


def text_of(turns: Any) -> str:
    """The text of a prompt or completion, which TRL gives as a string or as a list of messages."""
    if isinstance(turns, str):
        return turns
    contents = [turn["content"] for turn in turns]
    return "\n".join(
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        for content in contents
    )


def _accuracy_as(kind: ProblemType) -> RewardFunction:
    def scored(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        columns["problem_type"] = [kind] * len(completions)
        return accuracy(prompts, completions, **columns)

    scored.__doc__ = f"`accuracy` with every record scored as {kind}."
    return scored


def _with_settings(fn: RewardFunction, mode: Mode, think: bool, think_opened: bool | None) -> RewardFunction:
    """A registered function that reads the columns it knows. The settings are the run's, whatever the data has."""

    def scored(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Sequence[float | None]:
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
    """A reward function with the `name` it is logged under and its `weight` in the total."""

    name: str
    fn: RewardFunction
    weight: float = 1.0


@dataclass(frozen=True)
class GroupScore:
    """`total` has one reward per completion; `parts` has the values of each function (None: not applicable).

    `failed` is how many completions a scorer of `accuracy` failed on, which scores 0.
    """

    total: list[float]
    parts: dict[str, list[float | None]]
    failed: int = 0


def build_rewards(
    functions: Sequence[str | RewardFunction] | None = None,
    weights: Sequence[float] | None = None,
    *,
    mode: Mode = "strict",
    think: bool = True,
    think_opened: bool | None = None,
) -> list[Reward]:
    """The rewards of a run, from registered names, `package.module:function`, `file.py:function` or callables.

    Default: accuracy and format, weighted 0.9 and 0.1; given functions weigh 1 each unless `weights` says
    otherwise. `think_opened`: as in `format`. A run gives its rewards whole turns, so it says False.

    Raises `RewardError` for an unknown name, two functions of one name, or weights that do not fit.
    """
    if functions is None:
        functions = ["accuracy", "format"]
        weights = [0.9, 0.1] if weights is None else weights
    if weights is None:
        weights = [1.0] * len(functions)
    if len(weights) != len(functions) or not all(math.isfinite(weight) for weight in weights):
        raise RewardError(f"{len(functions)} reward functions but weights {list(weights)}; give one number for each")
    rewards = []
    for function, weight in zip(functions, weights, strict=True):
        if isinstance(function, str):
            name, fn = function.rpartition(":")[2], load_reward(function)
        else:
            name, fn = getattr(function, "__name__", type(function).__name__), function
        if fn in REGISTRY.values():
            fn = _with_settings(fn, mode, think, think_opened)
        rewards.append(Reward(name, fn, float(weight)))
    names = [reward.name for reward in rewards]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise RewardError(f"two reward functions are called {repeated.pop()!r}; rename one, metrics are logged by name")
    return rewards


def load_reward(name: str) -> RewardFunction:
    """Load a reward function: a registered name, `package.module:function` or `path/to/file.py:function`."""
    if name in REGISTRY:
        return REGISTRY[name]
    home, colon, attribute = name.rpartition(":")
    if not colon:
        raise RewardError(f"no reward is called {name!r}; known are {', '.join(REGISTRY)}, or give file.py:function")
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
    scoring = _Scoring(time_limit)
    token = _scoring.set(scoring)
    try:
        parts = {
            r.name: run_reward(r.fn, r.name, prompts, completions, columns, time_limit=time_limit) for r in rewards
        }
    finally:
        _scoring.reset(token)
    total = []
    for i in range(len(completions)):
        values = [(reward.weight, parts[reward.name][i]) for reward in rewards]
        applicable = [weight * value for weight, value in values if value is not None]
        if not applicable:
            raise RewardError(f"no reward applies to completion {i}: {', '.join(parts)} all returned None")
        total.append(sum(applicable))
    return GroupScore(total, parts, len(scoring.failed))


def of_record(
    record: Record, texts: list[str], ids: list[list[int]]
) -> tuple[list[str], list[str], dict[str, Sequence[Any]]]:
    """Prompts, completions and columns that reward functions get for completions of one record, as text and as token ids.

    A column of the data that has the name of one of a function's own arguments (`prompts`, `completions`,
    `completion_ids`) gives way to it.
    """
    columns: dict[str, Sequence[Any]] = {name: [value] * len(texts) for name, value in record.columns().items()}
    return [record.problem] * len(texts), texts, columns | {"completion_ids": ids}


def run_reward(
    fn: RewardFunction,
    name: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    *,
    time_limit: float = TIME_LIMIT,
) -> list[float | None]:
    """Call one reward function and hold it to its contract: one finite number or None per completion, in time.

    `sys.exit`, an endless loop or an exception in a user's function ends in a `RewardError` that names it, not in a dead
    run; see `call_with_limit`.
    """
    arguments = {name: list(values) for name, values in columns.items()}
    arguments |= {"prompts": list(prompts), "completions": list(completions)}
    values = call_with_limit(
        lambda: fn(**arguments),
        f"reward {name!r}",
        time_limit,
    )
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RewardError(f"reward {name!r} returned {type(values).__name__}; it must return a list of floats")
    if len(values) != len(completions):
        raise RewardError(f"reward {name!r} returned {len(values)} values for {len(completions)} completions")
    return [_checked(value, name, i) for i, value in enumerate(values)]


def _checked(value: Any, name: str, index: int) -> float | None:
    if value is None:
        return None
    if hasattr(value, "item"):
        with suppress(ValueError, RuntimeError):  # a tensor or array of more than one number
            value = value.item()
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise RewardError(
            f"reward {name!r} returned {value!r} for completion {index}; it must return a finite number, "
            "or None where it does not apply"
        )
    return float(value)


class _TooSlow(BaseException):
    """Not an Exception, which a function that catches those of its own would catch, too."""


def call_with_limit(call: Callable[[], Any], what: str, seconds: float) -> Any:
    """Return `call()`. Raises `RewardError`, which names `what`, if it raises anything or takes more than `seconds`.

    An alarm ends Python code, sleeping and waiting, and regular expressions that backtrack without end; code of other
    languages only once it comes back. Signals reach the main thread alone: in another one nothing is limited.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    limited = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, ring) if limited else None
    try:
        try:
            if limited:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            return call()
        finally:
            if limited:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        raise
    except _TooSlow as error:
        raise RewardError(
            f"{what} took more than {seconds:g} s for one call; make it faster, or raise reward_timeout"
        ) from error
    except BaseException as error:  # SystemExit, too: a reward must not end the run
        raise RewardError(f"{what} failed: {type(error).__name__}: {error}") from error
    finally:
        if limited:
            signal.signal(signal.SIGALRM, before)
