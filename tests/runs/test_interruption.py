"""A signal saves and ends a run at the end of its rollout batch; a second one, later, ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ral.runs import interruption
from ral.runs.interruption import Interrupted, Interruption


class Run:
    """The calls that a trainer makes."""

    def __init__(self, folder: Path, every: int | None = None):
        self.interruption = Interruption() if every is None else Interruption(every)
        self.args: Any = TrainingArguments(output_dir=str(folder), use_cpu=True)
        self.interruption.on_train_begin(self.args, TrainerState(), TrainerControl())

    def ends_after(self, step: int) -> bool:
        control, state = TrainerControl(), TrainerState()
        state.global_step = step
        self.interruption.on_step_end(self.args, state, control)
        assert control.should_save == control.should_training_stop
        return control.should_save

    def end(self) -> None:
        self.interruption.on_train_end(self.args, TrainerState(), TrainerControl())


@pytest.fixture
def taken() -> Iterator[list[int]]:
    """Signals that reach who had them before the run."""
    found: list[int] = []
    before = {number: signal.signal(number, lambda n, _: found.append(n)) for number in interruption.SIGNALS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_signal_a_run_goes_on(tmp_path: Path, taken: list[int]) -> None:
    run = Run(tmp_path, every=1)
    assert not any(run.ends_after(step) for step in range(1, 4))
    assert run.interruption.received is None
    run.end()
    signal.raise_signal(signal.SIGTERM)
    assert taken == [signal.SIGTERM], "behind the run signals are whose they were"


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_ends_the_run_with_its_rollout_batch(number: int, tmp_path: Path, taken: list[int]) -> None:
    run = Run(tmp_path, every=3)
    signal.raise_signal(number)
    assert [run.ends_after(step) for step in (4, 5, 6, 7)] == [False, False, True, False]
    assert run.interruption.received == number
    assert Interrupted(number).code == 128 + number
    run.interruption.on_train_begin(run.args, TrainerState(), TrainerControl())
    assert not run.ends_after(3), "a signal ends one run"
    assert not taken


def test_a_second_signal_ends_at_once_unless_it_is_an_echo(
    tmp_path: Path, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now)
    Run(tmp_path, every=1)
    signal.raise_signal(signal.SIGINT)
    now = 101.9
    signal.raise_signal(signal.SIGINT)
    now = 102.0
    signal.raise_signal(signal.SIGINT)
    assert not taken
    now = 102.1
    signal.raise_signal(signal.SIGINT)
    assert taken == [signal.SIGINT]


def test_a_rollout_batch_is_one_step_unless_said(tmp_path: Path, taken: list[int]) -> None:
    run = Run(tmp_path)
    signal.raise_signal(signal.SIGTERM)
    assert [run.ends_after(step) for step in (1, 2, 3)] == [True] * 3


@pytest.mark.parametrize("number", [0, *interruption.SIGNALS])
def test_a_signal_to_one_process_ends_all(
    number: int, tmp_path: Path, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes add up what they got; one that got nothing ends as after SIGTERM."""
    elsewhere: Any = SimpleNamespace(num_processes=2, device="cpu")
    monkeypatch.setattr(interruption, "PartialState", lambda: elsewhere)
    monkeypatch.setattr(interruption, "reduce", lambda value, reduction: value + number)
    run = Run(tmp_path)
    assert run.ends_after(1) == bool(number)
    assert run.interruption.received == (signal.SIGTERM if number else None)
    signal.raise_signal(signal.SIGINT)
    if not number:
        assert run.ends_after(2)
        assert run.interruption.received == signal.SIGINT
