"""The process that math-verify runs in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ral.rewards import mathematics
from ral.rewards.mathematics import math_equal


def test_a_forked_process_has_a_child_and_a_lock_of_its_own() -> None:
    """A worker may be forked while another thread waits for a verdict: it would wait for ever, or read that verdict."""
    assert math_equal("$1/2$", "$0.5$")
    theirs, lock = mathematics._child, mathematics._lock
    assert theirs is not None
    with lock:
        worker = os.fork()
        if not worker:
            os._exit(0 if mathematics._child is None and mathematics._lock.acquire(blocking=False) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0
        assert lock.locked()
    assert mathematics._child is theirs
    assert theirs.poll() is None
    assert math_equal("$2$", "$2$")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of another process, as Linux shows it")
def test_it_imports_what_it_needs_alone() -> None:
    """Torch alone takes more address space than the process may have: it would die at its second question."""
    assert all(math_equal("$1/2$", answer) for answer in ("$0.5$", "$2/4$", "$0.50$"))
    assert mathematics._child is not None
    status = Path(f"/proc/{mathematics._child.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak:"))
    assert peak * 1024 < mathematics.MEMORY_LIMIT / 2
