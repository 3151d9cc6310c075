"""Names the record in errors, also when the data-loading process that read it has died."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet

import torch

from ral.data.record import Record
from ral.errors import WorkerError

#: How torch tells of dead workers: by `DataLoader`'s own check and, in POSIX's words for the signal, on SIGCHLD.
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\)(?: is killed by signal: (?P<signal>[^.]+))?")

#: How long a worker whose connections are closed may take to end.
SECONDS_TO_END = 5.0

_ADVICE: dict[str | None, str] = {
    "SIGKILL": (
        "The kernel ends processes so when memory runs out: go on (--resume) with a lower dataloader_num_workers or "
        "dataloader_prefetch_factor, or lower max_pixels or num_frames if a medium of that record is too large"
    ),
    "SIGBUS": (
        "The shared memory that batches are handed over in (/dev/shm) has run out: give a container more (--shm-size), or go "
        "on (--resume) with a lower dataloader_num_workers or dataloader_prefetch_factor"
    ),
}
#: Also where the signal is not known: whoever waits for a dead child first learns it, and that may be torch.
_OTHERWISE = (
    "If it was reading a record, a decoder may have crashed on a medium of it: write that file anew or drop the row; "
    "dataloader_num_workers=0 shows where. If memory ran out, go on (--resume) with a lower dataloader_num_workers"
)


@contextmanager
def name_in_errors(record: Record) -> Iterator[None]:
    """Add a note that names the record to any exception raised inside."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while using {record.place}")
        raise


class WatchedRecords:
    """The records of a data loader. It notes which process is reading which record.

    The notes are in shared memory, so the notes of a killed process remain.
    """

    def __init__(self, records: Sequence[Record]):
        self.records = records
        # [records]: the id of the process that is reading the record; 0: nobody is.
        self._readers = torch.zeros(len(records), dtype=torch.int32).share_memory_()
        _WATCHED.add(self)

    @contextmanager
    def record(self, number: int) -> Iterator[Record]:
        """Yield one record and note its reader; errors raised inside name the record."""
        self._readers[number] = os.getpid()
        try:
            with name_in_errors(self.records[number]):
                yield self.records[number]
        finally:
            self._readers[number] = 0

    def readings(self) -> list[tuple[int, Record]]:
        """Which process is reading which record, or was when it died."""
        return [(pid, record) for pid, record in zip(self._readers.tolist(), self.records, strict=True) if pid]

    def forget(self, pids: Sequence[int]) -> None:
        """Take back the notes of dead processes, once they are told of: a later error is not theirs."""
        for pid in pids:
            self._readers[self._readers == pid] = 0


#: Torch tells of a death on SIGCHLD, wherever the process is then: the data loader that asks must be found from there.
_WATCHED: WeakSet[WatchedRecords] = WeakSet()


@contextmanager
def watched() -> Iterator[None]:
    """Raise WorkerError instead of torch's error if a worker of any data loader of `WatchedRecords` has died inside.

    It has to enclose all that runs while a data loader has workers, not the loader alone: torch's handler raises anywhere.
    """
    try:
        yield
    except Exception as error:
        try:
            death = _death(error)
        except RuntimeError as told:  # torch's handler may raise in there, too
            death = _death(told)
        if death is not None:
            raise death from error
        raise


def _death(error: BaseException) -> WorkerError | None:
    """The error for dead workers, if the exception or one of its causes reports any."""
    found = [dead for one in _causes(error) if (dead := _DEAD.search(str(one)))]
    pids = sorted({int(pid) for dead in found for pid in dead["pids"].split(",")})
    names = {dead["signal"] for dead in found if dead["signal"]}
    killer = next((one.name for one in signal.Signals if signal.strsignal(one) in names), None)
    readings = [one for reading in list(_WATCHED) for one in reading.readings()]
    if not found:  # its tensors may be asked for before torch looks after it
        readers = {pid for pid, _ in readings} - {os.getpid()}
        if not isinstance(error, OSError | EOFError) or not (ended := _soon_ended(readers)):
            return None
        pids, killer = sorted(ended), next((how for how in ended.values() if how), None)
    how = "ended unexpectedly" if killer is None else f"was killed by {killer}"
    read = [_told(record) for pid, record in readings if pid in pids]
    at = f"while it read {' and '.join(read)}" if read else "between two records"
    for reading in list(_WATCHED):
        reading.forget(pids)
    which = ", ".join(map(str, pids))
    return WorkerError(f"a data-loading worker (process {which}) {how} {at}. {_ADVICE.get(killer, _OTHERWISE)}.")


def _soon_ended(pids: set[int]) -> dict[int, str]:
    """Those that have ended, with the signals that killed them. A process's connections close a moment before it has ended."""
    patience = time.monotonic() + (SECONDS_TO_END if pids else 0)
    while not (ended := {pid: how for pid in pids if (how := _ended(pid)) is not None}):
        if time.monotonic() > patience:
            break
        time.sleep(0.01)
    return ended


def _ended(pid: int) -> str | None:
    """The signal that killed a child process; empty if it ended otherwise, None while it runs. It stays to be waited for."""
    try:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # somebody has waited for it already
        return ""
    if status is None:
        return None
    return signal.Signals(status.si_status).name if status.si_code == os.CLD_KILLED else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(record: Record) -> str:
    files = ", ".join(str(medium) for medium in (*record.images, *record.videos) if isinstance(medium, Path))
    return f"{record.place}{files and f' with {files}'}"
