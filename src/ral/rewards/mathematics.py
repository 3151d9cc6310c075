"""Equality of mathematical answers, decided by math-verify in its own process.

SymPy can hang or fill the memory on a short expression (`9^{9^{9^9}}`), inside C code that no signal or
thread can stop. So the comparison runs in a child process. The child is killed at the time limit, and a new one starts for the
next question. `python -m ral.rewards.mathematics` runs this module as the child: it reads one JSON request per line and
writes one JSON verdict per line.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading

from ral.errors import WorkerError

#: Seconds for one comparison, after the child has started.
TIME_LIMIT = 5.0
#: Seconds the child may take to start and import SymPy.
START_LIMIT = 120.0
#: Bytes of address space the child may use.
MEMORY_LIMIT = 2 << 30
#: Longest text that is worth parsing; longer ones count as different.
MAX_CHARACTERS = 20_000

_lock = threading.Lock()
_child: subprocess.Popen[str] | None = None
_ready = False


def math_equal(answer: str, solution: str, time_limit: float = TIME_LIMIT) -> bool:
    """Whether math-verify finds `answer` equal to `solution`; False when it cannot tell within `time_limit` seconds.

    `answer` may be a whole text: the last expression that can be parsed in it counts. Source: math-verify's
    `verify(parse(solution), parse(answer))`.
    """
    try:
        return compare(answer, solution, time_limit)
    except TimeoutError:
        return False


def compare(answer: str, solution: str, time_limit: float = TIME_LIMIT) -> bool:
    """`math_equal`, but raises `TimeoutError` where a comparison took too long, too much memory, or ended the child."""
    if max(len(answer), len(solution)) > MAX_CHARACTERS:
        return False
    with _lock:
        child = _running_child()
        assert child.stdin is not None
        verdict = None
        try:
            child.stdin.write(json.dumps([answer, solution]) + "\n")
            child.stdin.flush()
            verdict = _read_line(child, time_limit)
        except BrokenPipeError:
            pass
        finally:
            if verdict is None:  # also where an alarm rings: the next question must not get this verdict
                _stop_child()
        if verdict is None:
            _start_child()  # it gets ready for the next question while this one is settled
            raise TimeoutError(f"no verdict within {time_limit:g} s")
        return verdict == "true"


def _start_child() -> subprocess.Popen[str]:
    global _child, _ready
    _ready = False
    _child = subprocess.Popen(
        [sys.executable, "-P", __file__],  # by its path: as a module it would import all of its package, and torch
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    return _child


def _running_child() -> subprocess.Popen[str]:
    global _ready
    child = _child if _child is not None and _child.poll() is None else _start_child()
    if not _ready and _read_line(child, START_LIMIT) != "ready":
        _stop_child()
        raise WorkerError("math-verify's process does not start; try `python -c 'import math_verify'`")
    _ready = True
    return child


def _read_line(child: subprocess.Popen[str], seconds: float) -> str | None:
    # One line is in flight at a time, so the text layer never holds back a line that select cannot see.
    assert child.stdout is not None
    readable, _, _ = select.select([child.stdout], [], [], seconds)
    return (child.stdout.readline().strip() or None) if readable else None


@atexit.register
def _stop_child() -> None:
    global _child
    if _child is not None:
        _child.kill()
        _child.communicate()
        _child = None


def _forget_child() -> None:
    """A forked process must not share its parent's pipes."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_child)


def _serve() -> None:
    import resource

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    print("ready", flush=True)
    for line in sys.stdin:
        answer, solution = json.loads(line)
        verdict = False
        with contextlib.suppress(Exception):
            verdict = bool(verify(parse(solution), parse(answer)))
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    _serve()
