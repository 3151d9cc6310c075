"""What is said of a worker that dies, and of a record that cannot be used; that a record is named is in tests/training/test_sft.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from ral.data import record_errors
from ral.data.record import Record
from ral.data.record_errors import WatchedRecords, WorkerError, name_in_errors, watched

RECORDS = [Record(str(i), "?", "!", images=(Path(f"{i}.png"),), origin=f"d.jsonl: line {i + 1}") for i in range(8)]

#: A killed child. The second if torch has waited for it before it could be asked for the signal.
ENDED = "(was killed by SIGKILL|ended unexpectedly)"


def identity(rows: list[int]) -> list[int]:
    return rows


def fail(*said: str) -> None:
    """Raise a RuntimeError with the last of these messages, caused by one with the others."""
    *causes, last = said
    try:
        if causes:
            fail(*causes)
    finally:
        raise RuntimeError(last)


def killed(worker: BaseProcess, batches: Iterator[Any]) -> None:
    worker.kill()
    list(batches)


def test_a_worker_that_dies_between_two_records_blames_none() -> None:
    batches = iter(DataLoader(range(8), batch_size=1, num_workers=1, prefetch_factor=1, collate_fn=identity))  # type: ignore[arg-type]
    next(batches)
    time.sleep(0.5)  # until the next batch is ready, and the worker waits
    [worker] = multiprocessing.active_children()
    said = rf"process {worker.pid}\) {ENDED} between two records\. "
    with pytest.raises(WorkerError, match=said), watched():
        killed(worker, batches)


def test_every_record_that_a_dead_process_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, left = WatchedRecords(RECORDS), ExitStack()
    for number, process in ((2, 11), (3, 12), (5, 13)):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        left.enter_context(reading.record(number))
    with pytest.raises(WorkerError) as caught, watched():
        fail(
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that",
            "DataLoader worker (pid(s) 11, 12) exited unexpectedly",
        )
    assert str(caught.value).startswith(
        "a data-loading worker (process 11, 12) was killed by SIGBUS while it read record 2 (d.jsonl: line 3) with 2.png "
        "and record 3 (d.jsonl: line 4) with 3.png. The shared memory"
    )


def test_what_is_read_to_its_end_or_fails_is_no_longer_being_read() -> None:
    reading = WatchedRecords(RECORDS)
    with reading.record(1):
        pass
    with pytest.raises(OSError, match="full") as caught, reading.record(2):
        raise OSError("full")
    assert caught.value.__notes__ == ["while using record 2 (d.jsonl: line 3)"]
    with pytest.raises(WorkerError, match="ended unexpectedly between two records"), watched():
        fail("DataLoader worker (pid 1) exited unexpectedly with exit code 1.")


def test_other_errors_pass_as_they_are() -> None:
    error = RuntimeError("CUDA out of memory")
    with pytest.raises(RuntimeError) as caught, watched(), name_in_errors(RECORDS[0]):
        raise error
    assert caught.value is error


def test_torch_may_tell_of_the_death_while_it_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pids: set[int]) -> dict[int, str]:
        raise RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. ")

    monkeypatch.setattr(record_errors, "_soon_ended", interrupted)
    reading = WatchedRecords(RECORDS)
    reading._readers[2] = 77
    with pytest.raises(WorkerError, match=r"process 77\) was killed by SIGKILL while it read record 2 "):  # noqa: SIM117
        with watched():
            raise ConnectionResetError("Connection reset by peer")


class Deadly(Dataset[int]):
    """A worker that reads row 2 is killed by the kernel."""

    def __init__(self) -> None:
        self.reading = WatchedRecords(RECORDS)

    def __getitem__(self, number: int) -> int:
        with self.reading.record(number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return number

    def __len__(self) -> int:
        return 3


def use_slowly(batches: Iterator[Any]) -> None:
    assert next(batches) == [0]
    time.sleep(10)  # the signal comes in here
    pytest.fail("the death was not heard of")


def test_a_death_is_named_wherever_the_process_is_when_it_hears_of_it() -> None:
    """Torch's handler of SIGCHLD raises in what uses the batches, too."""
    other = WatchedRecords(RECORDS)
    with pytest.raises(WorkerError, match=f"{ENDED} while it read record 2 "), watched(), other.record(0):
        use_slowly(iter(DataLoader(Deadly(), batch_size=1, num_workers=1, prefetch_factor=3, collate_fn=identity)))


def test_a_death_is_told_of_once() -> None:
    reading = WatchedRecords(RECORDS)
    reading._readers[2] = 77
    with pytest.raises(WorkerError, match="while it read record 2"), watched():
        fail("DataLoader worker (pid 77) is killed by signal: Killed. ")
    with pytest.raises(OSError, match="disk full"), watched():
        raise OSError("disk full")
