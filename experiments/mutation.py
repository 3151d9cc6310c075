"""What the tests of a room notice: single-place mutants of its modules, `python -m experiments.mutation --room objective --n 40`.

Mutants come from mutmut's operators and a few of ours (`experiments/mutants.py`). The sample is the same for a seed, and a
larger `--n` only adds to it: each mutant has a key that stays while its lines stay, and the keys are ordered by hash. For each
the room's tests that run the changed statement run until one fails, the fastest first (`experiments/covering.py`). Which these are
is kept in `build/mutation`. Figures go to `experiments/results/mutation/ROOM.jsonl` after each mutant, and a further call goes on
from there; `--survivors` runs those again that survived so far, and `--also` whole test files with them, of other rooms.

What is tested is the last commit, unpacked into a folder of its own: processes that tests start import the mutant, too. One
parent imports what the tests need of other packages and forks a child for each mutant, so a mutant does not wait for these.

`--table` only writes docs/mutation.md again. Needs a POSIX system.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import gc
import hashlib
import importlib
import itertools
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from experiments.committed import unpack_commit
from experiments.covering import Covering, Recorder
from experiments.mutants import Mutant, mutants
from ral.runs.folder import machine_class

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "mutation"
REASONS = RESULTS / "reasons.json"
PAGE = ROOT / "docs" / "mutation.md"
COVERINGS = ROOT / "build" / "mutation"
SOURCE = Path("src") / "ral"

ROOMS = ("attention", "objective", "rollouts", "training", "rewards", "data", "runs", "evaluate")
#: Tests of many processes, which judge no mutant.
SLOW = {"test_distributed.py", "test_kills.py", "test_sharded.py"}
#: Seconds by the wall clock for a test beside ten times its own: the machine may have other work.
PATIENCE = 60.0
#: What pytest says of a test's name that it does not find.
UNKNOWN_TEST = "pytest ended with 4"
#: Modules that a mutant has to import anew.
OWN = {"ral", "tests", "experiments", "benchmarks", "docs"}


@dataclass(frozen=True)
class Result:
    """One mutant and what became of it: killed, timeout (killed by the clock) or survived. `by` is the test that failed.

    `first` is what became of it when it first ran, before tests were written for survivors; None where that was not noted.
    `wide`: tests of other rooms ran, too. `gone`: the module has no such place any more.
    """

    key: str
    file: str
    line: int
    kind: str
    before: str
    after: str
    outcome: str
    by: str | None
    wide: bool
    seconds: float
    commit: str
    seed: int
    machine: str
    first: str | None = None
    gone: bool = False


# ------------------------------------------------------------------------------------------------ a tree to run


class Tree:
    """The commit's files in a folder, in which one module at a time is replaced by a mutant."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder = folder
        self.commit = _git(repository, "rev-parse", "--short", "HEAD").decode().strip()
        unpack_commit(repository, "HEAD", folder)

    def tests(self, room: str) -> list[str]:
        """The room's test files, without those of many processes."""
        found = sorted((self.folder / "tests" / room).rglob("test_*.py"))
        return [path.relative_to(self.folder).as_posix() for path in found if path.name not in SLOW]

    def hash(self, file: str) -> str:
        return hashlib.sha256((self.folder / file).read_bytes()).hexdigest()[:16]

    def sources(self) -> dict[str, str]:
        """Each module below `src/ral` with its hash."""
        root = self.folder / SOURCE
        found = (path.relative_to(root).as_posix() for path in root.rglob("*.py"))
        return {name: self.hash((SOURCE / name).as_posix()) for name in found}

    @contextlib.contextmanager
    def changed(self, file: str, source: str) -> Iterator[None]:
        """`file` holds `source`, and no bytecode of what it was; children write none."""
        path = self.folder / file
        original = path.read_text(encoding="utf-8")
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            stale.unlink()
        path.write_text(source, encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(original, encoding="utf-8")


def _git(repository: Path, *command: str) -> bytes:
    return subprocess.run(["git", "-C", str(repository), *command], check=True, capture_output=True).stdout


# ---------------------------------------------------------------------------------------------- tests in a child


class _Watch:
    """In the child: says which test failed first, and gives each test its time."""

    def __init__(self, limit: float) -> None:
        self.limit, self.failed = limit, None

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.limit)  # the signal ends the process, whatever it hangs in

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid


@dataclass(frozen=True)
class Limits:
    """Seconds for one test, or the import of its file, and for all of them: a test may take the first one's alarm for itself."""

    test: float
    whole: float


@dataclass(frozen=True)
class Tested:
    """What a child said: the test that failed first, None if none did; `timeout` where one took too long."""

    failed: str | None
    timeout: bool
    modules: tuple[str, ...]


def run_tests(
    tree: Tree, tests: Sequence[str], limits: Limits, *, write_bytecode: bool = False, record: Path | None = None
) -> Tested:
    """Runs `tests` in a forked child until one fails; with `record` notes there which lines each of them runs."""
    answer, write = os.pipe()
    child = os.fork()
    if not child:
        gc.freeze()  # the parent's garbage may hold threads and decoders, which are not in a fork and crash if they are freed
        os.close(answer)
        try:
            _in_child(tree, tests, limits.test, write, write_bytecode, record)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(answer, encoding="utf-8") as reader:
        in_time = select.select([reader], [], [], limits.whole)[0]
        if not in_time:
            os.kill(child, signal.SIGKILL)
        said = reader.readline()
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what the tests started and left
    if not said:  # ended from outside: by its alarm, or by a signal such as a segmentation fault
        alarm = not in_time or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM)
        return Tested(None if alarm else "the process died", alarm, ())
    return Tested(timeout=False, **json.loads(said))


def _in_child(
    tree: Tree, tests: Sequence[str], limit: float, answer: int, write_bytecode: bool, record: Path | None
) -> None:
    os.setsid()
    signal.setitimer(signal.ITIMER_REAL, limit)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.chdir(tree.folder)
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__.split(".")[0] not in OWN]
    ours = [str(tree.folder / "src"), str(tree.folder)]
    sys.path[:] = ours + [entry for entry in sys.path if entry and not Path(entry).resolve().is_relative_to(ROOT)]
    sys.path_importer_cache.clear()
    os.environ["PYTHONPATH"] = os.pathsep.join(ours)
    sys.dont_write_bytecode = not write_bytecode
    if not write_bytecode:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    watch = _Watch(limit)
    recorder = [Recorder(tree.folder / SOURCE, record)] if record else []
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "--rootdir", "."]
    code = pytest.main([*options, *tests], plugins=[watch, *recorder])
    failed = watch.failed or (f"pytest ended with {int(code)}" if code else None)
    modules = [name for name in list(sys.modules) if name.split(".")[0] not in OWN]
    said = {"failed": failed, "modules": modules}
    os.write(answer, (json.dumps(said) + "\n").encode())
    os._exit(0)


def warm_up(tree: Tree, tests: Sequence[str], left_out: Sequence[str], kept: Path) -> Covering:
    """Which lines the tests run, known from `kept` as far as it goes; imports here what they import of other packages.

    Raises RuntimeError where the tests fail without a mutation, in a child like those of the mutants.
    """
    collect(tree, [*left_out, *tests])
    covering = Covering.read(kept)
    hashes = {test: tree.hash(test) for test in tests}
    stale = covering.keep(hashes, tree.sources())
    if stale:
        record = kept.with_suffix(".part")
        kept.parent.mkdir(parents=True, exist_ok=True)
        collect(tree, [*left_out, *stale], record)
        covering.add(record, {test: hashes[test] for test in stale})
        record.unlink()
    covering.write(kept)
    return covering


def collect(tree: Tree, tests: Sequence[str], record: Path | None = None) -> None:
    """Imports here what the tests import of other packages; with `record` they run, and it notes their lines."""
    options = [] if record else ["--collect-only"]
    found = run_tests(tree, [*options, *tests], Limits(600, 7200), write_bytecode=True, record=record)
    if found.failed or found.timeout:
        raise RuntimeError(f"without a mutation, {found.failed or 'a test that takes too long'} fails at {tree.commit}")
    for name in found.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


# ------------------------------------------------------------------------------------------------- the sample


def sample(tree: Tree, room: str, seed: int, n: int | None = None) -> list[tuple[str, Mutant]]:
    """`n` mutants of the room's modules (None: all), each with its file, in an order that `seed` and their keys decide."""
    found = []
    for path in sorted((tree.folder / SOURCE / room).rglob("*.py")):
        file = path.relative_to(tree.folder).as_posix()
        found += [(file, mutant) for mutant in mutants(path.read_text(encoding="utf-8"), file)]
    return sorted(found, key=lambda each: hashlib.sha256(f"{seed}/{each[1].key}".encode()).digest())[:n]


@dataclass(frozen=True)
class Plan:
    """What of a room is run: `n` mutants of the sample of `seed`, without those that have a result, and again all `survivors`.

    A mutant gets the fastest tests that `seconds` are enough for, so that its score is a lower bound, and the files `also`.
    `left_out` are tests that are not run, as they fail without a mutation, too.
    """

    n: int
    seed: int = 0
    also: tuple[str, ...] = ()
    survivors: bool = False
    left_out: tuple[str, ...] = ()
    seconds: float = math.inf


def judge(tree: Tree, mutant: Mutant, file: str, covering: Covering, plan: Plan) -> Tested:
    """What the tests say that run the changed statement of `file`, as many as the plan's seconds are enough for."""
    path = Path(file).relative_to(SOURCE).as_posix()
    tests = covering.of(path, (tree.folder / file).read_text(encoding="utf-8"), mutant.line)
    if not tests and not plan.also:
        return Tested(None, False, ())
    times = [covering.time(test) for test in tests]
    fit = max(1, bisect.bisect(list(itertools.accumulate(times)), plan.seconds))
    tests, times = tests[:fit], times[:fit]
    also = PATIENCE * len(plan.also)
    limits = Limits(PATIENCE + 10 * max(times, default=0) + also, 2 * PATIENCE + 10 * (sum(times) + also))
    with tree.changed(file, mutant.source):
        found = run_tests(tree, [*tests, *plan.also], limits)
        if found.failed == UNKNOWN_TEST:  # a test is named after what the mutant changed
            files = dict.fromkeys(test.partition("::")[0] for test in tests)
            found = run_tests(tree, [*files, *plan.also], limits)
    return found


def run_room(tree: Tree, room: str, plan: Plan, results: Path, machine: str) -> None:
    """Runs the room's mutants; results go to its file in the folder `results` after each."""
    file_of_results = results / f"{room}.jsonl"
    done = {row.key: row for row in read(file_of_results)}
    survivors = {row.key for row in done.values() if plan.survivors and row.outcome == "survived"}
    todo = [each for each in sample(tree, room, plan.seed, plan.n) if each[1].key not in done]
    todo += [each for each in sample(tree, room, plan.seed) if each[1].key in survivors]
    left_out = [f"--deselect={test}" for test in plan.left_out]
    if not todo:
        return
    if plan.seconds > 0:
        covering = warm_up(tree, tree.tests(room), left_out, COVERINGS / f"{room}.json")
    else:
        collect(tree, plan.also)
        covering = Covering()
    for count, (file, mutant) in enumerate(todo, 1):
        began = time.monotonic()
        try:
            compile(mutant.source, file, "exec")
        except SyntaxError:
            continue  # no program, so no mutant
        found = judge(tree, mutant, file, covering, plan)
        outcome = "timeout" if found.timeout else "killed" if found.failed else "survived"
        seconds = round(time.monotonic() - began, 1)
        before = done.get(mutant.key)
        first = before.first if before else outcome
        done[mutant.key] = Result(
            mutant.key, file, mutant.line, mutant.kind, mutant.before, mutant.after, outcome, found.failed, bool(plan.also),
            seconds, tree.commit, before.seed if before else plan.seed, machine, first,
        )  # fmt: skip
        write(file_of_results, done.values())
        change = f"{mutant.before[:60]!r} → {mutant.after[:60]!r}"
        print(f"{count}/{len(todo)} {outcome} {file}:{mutant.line} {change}", flush=True)


def read(file: Path) -> list[Result]:
    """The results of a file, none where there is none."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def write(file: Path, results: Iterable[Result]) -> None:
    """The results, a line each; a kill leaves the file of before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in results), encoding="utf-8")
    part.replace(file)


# --------------------------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Score:
    """Of one room: mutants run, found by a test, and survivors that are the same program in other words."""

    run: int
    killed: int
    equivalent: int

    @property
    def percent(self) -> float:
        return 100 * self.killed / self.judged

    @property
    def judged(self) -> int:
        return max(1, self.run - self.equivalent)

    @property
    def found(self) -> str:
        low, high = (100 * end for end in binomtest(self.killed, self.judged).proportion_ci(method="wilson"))
        return f"{self.percent:.1f} % [{low:.0f}, {high:.0f}]"

    def __str__(self) -> str:
        return f"{self.run} | {self.killed} | {self.equivalent} | {self.found}"


def score(results: Sequence[Result], reasons: dict[str, dict[str, str]]) -> Score:
    """Equivalent survivors, which no test can find, count neither way."""
    survived = [row for row in results if row.outcome == "survived"]
    equivalent = sum(reasons.get(row.key, {}).get("kind") == "equivalent" for row in survived)
    return Score(len(results), len(results) - len(survived), equivalent)


def page(results: dict[str, list[Result]], reasons: dict[str, dict[str, str]]) -> str:
    """docs/mutation.md: the score of each room, then each survivor with its reason."""
    lines = [
        HEAD,
        "| room | mutants run | found | equivalent | score | modules at | machine |",
        "|---|---|---|---|---|---|---|",
    ]
    every = [row for found in results.values() for row in found]
    results = {room: [row for row in found if not row.gone] for room, found in results.items()}
    scores = {room: score(rows, reasons) for room, rows in results.items() if rows}
    for room, found in scores.items():
        commits = ", ".join(dict.fromkeys(row.commit for row in results[room]))
        machines = ", ".join(dict.fromkeys(row.machine for row in results[room]))
        lines.append(f"| `{room}` | {found} | {commits} | {machines} |")
    rows = [row for found in results.values() for row in found]
    lines.append(f"| all | {score(rows, reasons)} | | |")
    if missing := [room for room in ROOMS if room not in scores]:
        lines.append(f"\nNot run yet: {', '.join(f'`{room}`' for room in missing)}.")
    lines += [SEEDS]
    for seed in sorted({row.seed for row in every if row.first}):
        drawn = [row for row in every if row.seed == seed and row.first]
        first = score([replace(row, outcome=row.first or row.outcome) for row in drawn], reasons)
        there = [row for row in drawn if not row.gone]
        lines.append(f"| {seed} | {first} | {score(there, reasons).found} of {len(there)} |")
    lines += ["", "## Survivors", "", "| place | change | kind | reason |", "|---|---|---|---|"]
    for row in (row for row in rows if row.outcome == "survived"):
        why = reasons.get(row.key, {"kind": "open", "reason": "not looked at yet"})
        change = f"{_code(row.before)} → {_code(row.after)}"
        lines.append(
            f"| `{row.file.removeprefix('src/ral/')}:{row.line}` | {change} | {why['kind']} | {why['reason']} |"
        )
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Code in a cell of a table, shortened."""
    short = text if len(text) <= 90 else f"{text[:89]}…"
    return "`` " + short.replace("|", "\\|").replace("`` ", "` ") + " ``"


HEAD = """# What the tests notice

A mutant is a module with a change in one place: an operator, a comparison, a number, a condition, an argument, an assignment, a
slice, a statement that goes. The tests should fail for each. `python -m experiments.mutation` writes this page. The operators are
those of [mutmut](https://github.com/boxed/mutmut) and a few of ours; `experiments/mutants.py` says what they leave alone: strings,
annotations, decorators, the words of errors.

- The mutants of a room are a **sample** of all that its modules have, drawn by a seed. A score is an estimate: its interval is
  Wilson's, at 95 %.
- A mutant is *found* when a test of its own room fails, hangs or dies. The tests that run the changed statement in their own process
  run, then those that start processes; tests of many processes are left out. Test files of other rooms run for a survivor alone
  (`--also`): a score at first sight is of the room's own tests.
- A survivor is *equivalent* where the change is the same program in other words, as its reason says. It counts neither way.
- Tests were written for survivors, so the first table flatters. The second one has the honest figure: what tests found of each seed's
  mutants *at first sight*, and what they find now. Of seed 0, 123 of the 150 that are not equivalent were found at first (82 %).
- Seeds 1 and 2 ran on the modules of `b514bd3`; tests for the survivors of seed 1 were there when seed 2 ran. A mutant got tests of
  at most 150 s (seed 2: 45 s in most rooms; six mutants alone in `training`), so their scores at first sight are lower bounds.
- `experiments/results/mutation/ROOM.jsonl` holds every mutant with commit, seed and machine. A mutant keeps its result for as long
  as its own place stays as it is: a score is of the commits beside it (`a+b`: of `a` with that work's own changes up to `b`). Where
  the module has no such place any more (`--gone` looks), it counts for the score at first sight alone.

`python -m experiments.mutation --room objective --n 40 --seed 0` runs one room, and goes on where it was cut off; `--survivors` runs
again what survived, behind new tests.
"""


SEEDS = """
## At first sight

| seed | mutants run | found at first | equivalent | score at first sight | score now |
|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", choices=ROOMS, nargs="*", default=[], help="rooms to run")
    parser.add_argument("--n", type=int, default=40, help="mutants of each room's sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--also", nargs="*", default=[], metavar="FILE", help="test files that every mutant gets, too")
    parser.add_argument("--gone", action="store_true", help="mark the mutants whose place is gone")
    parser.add_argument("--survivors", action="store_true", help="also the mutants that survived so far")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of tests that a mutant gets, the fastest first"
    )
    parser.add_argument("--left-out", nargs="*", default=[], metavar="TEST", help="tests that fail anyway")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="only write the page")
    args = parser.parse_args()
    for room in () if args.table else args.room:
        with tempfile.TemporaryDirectory() as folder:
            tree = Tree(ROOT, Path(folder))
            plan = Plan(args.n, args.seed, tuple(args.also), args.survivors, tuple(args.left_out), args.seconds)
            run_room(tree, room, plan, args.results, machine_class())
    if args.gone:
        mark_gone(args.results)
    if args.results == RESULTS:
        PAGE.write_text(page(all_results(), read_reasons()), encoding="utf-8")


def mark_gone(results: Path) -> None:
    """Say of every result whether the modules of the working tree still have its place."""
    for room in ROOMS:
        there = {
            mutant.key
            for path in sorted((ROOT / SOURCE / room).rglob("*.py"))
            for mutant in mutants(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
        }
        file = results / f"{room}.jsonl"
        write(file, [replace(row, gone=row.key not in there) for row in read(file)])


def all_results() -> dict[str, list[Result]]:
    return {room: read(RESULTS / f"{room}.jsonl") for room in ROOMS}


def read_reasons() -> dict[str, dict[str, str]]:
    """Key of a survivor → its kind (`equivalent`, `accepted`, `pending`) and the reason."""
    found: dict[str, dict[str, str]] = json.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {}
    return found


if __name__ == "__main__":
    main()
