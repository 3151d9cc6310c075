"""Which tests run a line of a module, so that a mutant runs these alone, the fastest first.

`Recorder` watches one run of the tests: the lines of `src/ral` that each test runs in its own process, by coverage's contexts,
its time, and whether it starts other processes. `Covering` keeps that in a file: test files that did not change are not run for
it again.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

FIXTURE = "fixture "


class Recorder:
    """A pytest plugin that writes what `Covering.read` reads.

    What a fixture of a module or a session runs counts for every test that takes a fixture of its name.
    """

    def __init__(self, source: Path, file: Path) -> None:
        self.file, self.source = file, source
        self.coverage = coverage.Coverage(data_file=None, config_file=False, source=[str(source)])
        self.seconds: dict[str, float] = defaultdict(float)
        self.fixtures: dict[str, list[str]] = {}
        self.starters: set[str] = set()
        self.now = ""
        self.coverage.start()
        sys.addaudithook(self.on_event)

    def on_event(self, event: str, args: Any) -> None:
        """A process that may run our code: a fork, or Python; not git."""
        if self.now and (event == "os.fork" or (event == "subprocess.Popen" and "python" in str(args[:2]))):
            self.starters.add(self.now)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now = item.nodeid
        self.fixtures[item.nodeid] = list(getattr(item, "fixturenames", ()))
        self.coverage.switch_context(self.now)
        try:
            return (yield)
        finally:
            self.now = ""
            self.coverage.switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        self.coverage.switch_context(FIXTURE + fixturedef.argname)
        try:
            return (yield)
        finally:
            self.coverage.switch_context(self.now)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        users = defaultdict(set)
        for test, names in self.fixtures.items():
            for name in names:
                users[FIXTURE + name].add(test)
        lines = {}
        for file in data.measured_files():
            found = data.contexts_by_lineno(file).items()
            tests = {at: {test for c in contexts if c for test in users.get(c, {c})} for at, contexts in found}
            lines[Path(file).relative_to(self.source).as_posix()] = {at: sorted(names) for at, names in tests.items()}
        said = {"seconds": self.seconds, "starters": sorted(self.starters), "lines": lines}
        self.file.write_text(json.dumps(said), encoding="utf-8")


#: Where a test's lines in a module are kept that has changed since: only the module is known then.
SOMEWHERE = 0


@dataclass
class Covering:
    """For each file below `src/ral` and each line the tests that run it.

    `seconds` of each test; `starters`, the tests that start processes; `tests` and `sources`, hashes of the files it was found with.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    starters: set[str] = field(default_factory=set)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Covering:
        """What `write` wrote there, or nothing."""
        if not file.exists():
            return cls()
        said = json.loads(file.read_text(encoding="utf-8"))
        lines = {
            name: {int(at): set(tests) for at, tests in found.items()} for name, found in said.get("lines", {}).items()
        }
        return cls(**{**said, "lines": lines, "starters": set(said["starters"])})

    def write(self, file: Path) -> None:
        lines = {name: {at: sorted(tests) for at, tests in found.items()} for name, found in self.lines.items()}
        said = {**vars(self), "starters": sorted(self.starters), "lines": lines}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said), encoding="utf-8")

    def keep(self, tests: dict[str, str], sources: dict[str, str]) -> list[str]:
        """Forgets what is no longer known of these files, given with their hashes; returns the test files to run."""
        stale = [name for name, found in tests.items() if self.tests.get(name) != found]
        valid = tests.keys() - stale
        self.tests = {name: found for name, found in self.tests.items() if name in valid}
        self.seconds = {test: took for test, took in self.seconds.items() if test.partition("::")[0] in valid}
        self.starters &= self.seconds.keys()
        for name, found in self.lines.items():
            kept = {at: users & self.seconds.keys() for at, users in found.items()}
            same = self.sources.get(name) == sources.get(name)
            self.lines[name] = kept if same else {SOMEWHERE: set().union(*kept.values())}
        for name in sources.keys() - self.sources.keys():
            self.lines[name] = {SOMEWHERE: set(self.seconds)}
        self.sources = sources
        return stale

    def add(self, file: Path, tests: dict[str, str]) -> None:
        """What a `Recorder` wrote of a run of these test files."""
        self.tests |= tests
        self._join(Covering.read(file))

    def _join(self, more: Covering) -> None:
        self.seconds |= more.seconds
        self.starters |= more.starters
        for name, found in more.lines.items():
            known = self.lines.setdefault(name, {})
            for at, users in found.items():
                known[at] = known.get(at, set()) | users

    def of(self, file: str, source: str, line: int) -> list[str]:
        """The tests for a change in `line` of `file`, a path below `src/ral`: those that run its statement, the fastest first.

        A statement outside of functions runs when the module is imported, so it gets the tests that run anything of the
        module. Last come the tests that start processes, since what these run is not seen.
        """
        found = self.lines.get(file, {})
        span = statement(source, line)
        seen = set().union(*(tests for at, tests in found.items() if span is None or at == SOMEWHERE or at in span))
        others = self.starters - seen
        return [*sorted(seen, key=self.time), *sorted(others, key=self.time)]

    def time(self, test: str) -> float:
        return self.seconds.get(test, 0.0)


def statement(source: str, line: int) -> range | None:
    """The lines of the innermost statement in a function that `line` belongs to, of a compound one its head.

    None outside of functions. The head of a function (its defaults) counts as the whole of it.
    """
    found: range | None = None
    parents: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while parents:
        node, inside = parents.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt) and child.lineno <= line <= (child.end_lineno or child.lineno):
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                if inside or function:
                    body = getattr(child, "body", None)
                    head = body[0].lineno if body and not function else (child.end_lineno or child.lineno) + 1
                    found = range(child.lineno, head) if line < max(head, child.lineno + 1) else found
                parents.append((child, inside or function))
            elif not isinstance(child, ast.stmt):
                parents.append((child, inside))
    return found
