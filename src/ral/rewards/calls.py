"""Calls reward functions with TRL's arguments, and holds them to their contract: one number per completion, in time."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import signal
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from types import FrameType
from typing import Any

from ral.errors import RalError

RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]

#: Seconds one call of one reward function may take, for a whole group.
TIME_LIMIT = 60.0

#: Names of metrics that the trainer logs itself.
TRAINER_METRICS = frozenset({"epoch", "grad_norm", "learning_rate", "loss", "step"})


class RewardError(RalError, ValueError):
    """A reward function failed or returned something that is not a reward; the message names it, its line and the index.

    Attributes:
        group: the number of the group among those that were rewarded together.
    """

    group: int = 0


@dataclass
class RewardLog:
    """What the reward functions of one group log besides their rewards, through `log_extra` and `log_metric` (TRL's).

    Attributes:
        size: G. extra: by column, one value per completion. metrics: by name, the values of all calls.
    """

    size: int
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """A column of `samples.jsonl`: one value per completion. Raises ValueError for another number, or a second time."""
        values = list(values)
        if len(values) != self.size:
            raise ValueError(f"log_extra({column!r}) got {len(values)} values for {self.size} completions")
        if column in self.extra:
            raise ValueError(f"log_extra({column!r}) was called twice; choose another name")
        self.extra[column] = values

    def log_metric(self, name: str, value: float) -> None:
        """A metric of the logged step: the mean over all calls. Raises ValueError for what is no number, and for a taken name."""
        if name in TRAINER_METRICS or name == "reward" or name.startswith("reward/"):
            raise ValueError(f"log_metric({name!r}) has the name of a metric of the run; choose another")
        if not math.isfinite(value):
            raise ValueError(f"log_metric({name!r}) got {value!r}; expected a finite number")
        self.metrics.setdefault(name, []).append(float(value))


@dataclass(frozen=True)
class Arguments:
    """The arguments of reward functions for the completions of one prompt.

    Attributes:
        prompts, completions, columns: of one length, G. Texts, or messages of a conversational prompt, as in TRL.
        words: prompts and completions as texts, for the functions of this package; None where they are.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    columns: Mapping[str, Sequence[Any]]
    words: tuple[Sequence[str], Sequence[str]] | None = None


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine: an `async def`, a partial of one, or an object with such a `__call__`."""
    while isinstance(fn, partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def run_reward(
    fn: RewardFunction,
    name: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    *,
    time_limit: float = TIME_LIMIT,
    trainer_state: Any = None,
    log: RewardLog | None = None,
) -> list[float | None]:
    """Call one reward function and hold it to its contract: one finite number or None per completion, in time.

    `sys.exit`, an endless loop or an exception in a user's function ends in a `RewardError` that names it, not in a dead
    run; see `call_with_limit`.
    """
    given = Arguments(prompts, completions, columns)
    if is_async(fn):
        with running([(fn, name, given, log)], trainer_state) as started:
            return started.results(time_limit)[0]
    arguments = keywords(fn, given, trainer_state, log)
    return checked(call_with_limit(lambda: fn(**arguments), f"reward {name!r}", time_limit, fn), name, len(completions))


def keywords(fn: RewardFunction, given: Arguments, trainer_state: Any, log: RewardLog | None) -> dict[str, Any]:
    """The keywords of one call: TRL's. Lists are the function's own, so that it changes nothing for the next one."""
    arguments: dict[str, Any] = {name: list(values) for name, values in given.columns.items()}
    arguments |= {"prompts": list(given.prompts), "completions": list(given.completions)}
    log = log or RewardLog(len(given.completions))
    further = {"trainer_state": trainer_state, "log_extra": log.log_extra, "log_metric": log.log_metric}
    named = _parameters(fn)
    return arguments | {name: value for name, value in further.items() if named is None or name in named}


def _parameters(fn: RewardFunction) -> frozenset[str] | None:
    """The names of the keywords that a function takes; None where it takes any."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # written in another language
        return None
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return None if takes_any else frozenset(parameters)


def checked(values: Any, name: str, size: int) -> list[float | None]:
    """The rewards that a function returned. Raises RewardError for anything else."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RewardError(f"reward {name!r} returned {type(values).__name__}; it must return a list of floats")
    if len(values) != size:
        raise RewardError(f"reward {name!r} returned {len(values)} values for {size} completions")
    return [_number(value, name, i) for i, value in enumerate(values)]


def _number(value: Any, name: str, index: int) -> float | None:
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


# ------------------------------------------------------------------------------------------- in time


class _TooSlow(BaseException):
    """Not an Exception, which a function that catches those of its own would catch, too."""


def call_with_limit(call: Callable[[], Any], what: str, seconds: float, fn: Callable[..., Any] | None = None) -> Any:
    """Return `call()`. Raises `RewardError`, which names `what`, if it raises anything or takes more than `seconds`.

    An alarm ends Python code, sleeping and waiting, and regular expressions that backtrack without end; code of other
    languages only once it comes back. Signals reach the main thread alone: in another one nothing is limited.

    Args:
        fn: the function whose line an error names.
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
        raise _too_slow(what, seconds) from error
    except BaseException as error:  # SystemExit, too: a reward must not end the run
        raise _failed(what, error, fn) from error
    finally:
        if limited:
            signal.signal(signal.SIGALRM, before)


def _too_slow(what: str, seconds: float) -> RewardError:
    return RewardError(f"{what} took more than {seconds:g} s for one call; make it faster, or raise reward_timeout")


def _failed(what: str, error: BaseException, fn: Callable[..., Any] | None) -> RewardError:
    return RewardError(f"{what} failed: {type(error).__name__}: {error}{_place(error, fn)}")


def _place(error: BaseException, fn: Callable[..., Any] | None) -> str:
    """File and line of the error: the innermost line of the function's own file, else of all but this one."""
    while isinstance(fn, partial):
        fn = fn.func
    code = getattr(fn, "__code__", None) or getattr(getattr(fn, "__call__", None), "__code__", None)  # noqa: B004
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    return "".join(f" ({frame.filename}, line {frame.lineno})" for frame in (own or frames)[-1:])


# ------------------------------------------------------------------------------------------- at the same time


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all `async def` functions of the process, so that what a function keeps open stays usable."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


async def _answer(
    fn: RewardFunction, name: str, given: Arguments, trainer_state: Any, log: RewardLog | None
) -> list[float | None]:
    try:
        values: Any = await fn(**keywords(fn, given, trainer_state, log))  # type: ignore[misc]
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raise _failed(f"reward {name!r}", error, fn) from error
    return checked(values, name, len(given.completions))


class Running:
    """Calls of `async def` functions that run beside everything else, all at the same time."""

    def __init__(self, coroutines: Sequence[Any], names: Sequence[str]):
        self.names = names
        self.futures: list[Future[Any]] = [asyncio.run_coroutine_threadsafe(one, _loop()) for one in coroutines]

    def results(self, seconds: float) -> list[list[float | None]]:
        """Wait for all, `seconds` together. Raises the RewardError of a call that failed or was not ready, with its number."""
        ready, late = wait(self.futures, seconds, FIRST_EXCEPTION)
        for number, future in enumerate(self.futures):
            error = future.exception() if future in ready else None
            if error is None and late and future in late and all(one.exception() is None for one in ready):
                error = _too_slow(f"reward {self.names[number]!r}", seconds)
            if isinstance(error, RewardError):
                error.group = number
            if error is not None:
                raise error
        return [future.result() for future in self.futures]

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()


@contextmanager
def running(
    calls: Sequence[tuple[RewardFunction, str, Arguments, RewardLog | None]], trainer_state: Any
) -> Iterator[Running]:
    """Start these calls of `async def` functions; what has not ended behind the block is cancelled."""
    coroutines = [_answer(fn, name, given, trainer_state, log) for fn, name, given, log in calls]
    started = Running(coroutines, [name for _, name, _, _ in calls])
    try:
        yield started
    finally:
        started.cancel()
