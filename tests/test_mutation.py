"""The mutation command: which mutants it makes, and that a child's tests notice one, also in processes they start."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mutmut")

from experiments import mutation
from experiments.covering import Covering, statement
from experiments.mutants import mutants
from experiments.mutation import (
    PAGE,
    ROOMS,
    Limits,
    Plan,
    Result,
    Tree,
    all_results,
    page,
    read,
    read_reasons,
    run_tests,
    sample,
    score,
)

SOURCE = '''"""Words."""
from typing import cast

LIMIT: int = 3


def cut(values: list[int], first: int, last: int) -> list[int]:
    """More words, 7 of them."""
    if not values:
        raise ValueError(f"{1 + 1} values")
    values.sort(reverse=True)
    return cast(list[int], between(values, first, last))[first:]
'''


def changes() -> set[tuple[str, str, str]]:
    return {(mutant.kind, mutant.before, mutant.after) for mutant in mutants(SOURCE, "src/ral/a.py")}


def test_mutants_change_what_runs_and_not_what_is_said() -> None:
    found = changes()
    assert ("number", "3", "4") in found
    assert ("remove_unary_ops", "not values", "values") in found
    assert ("name", "True", "False") in found
    assert ("shift_bound", "first:", ":") in found
    assert {"pass"} == {after for kind, _, after in found if kind == "remove_statement"}
    text = " ".join(before + after for _, before, after in found)
    assert "7 of them" not in text.replace(next(b for _, b, a in found if "if not values" in b), "")
    assert not [1 for kind, before, _ in found if "1" in before and kind in ("number", "swap_op")]
    assert not [1 for _, before, _ in found if before.startswith(("cast", "between"))], "inside of a cast"


def test_every_mutant_is_another_program_and_has_a_key_of_its_own() -> None:
    found = mutants(SOURCE, "src/ral/a.py")
    assert len({mutant.key for mutant in found}) == len(found)
    for mutant in found:
        assert mutant.source != SOURCE
        compile(mutant.source, "a", "exec")


def test_arguments_and_conditions_are_swapped_and_negated() -> None:
    found = {(m.before, m.after) for m in mutants("x = f(a, b.c)\ny = min(a, b)\nwhile a < b:\n    g()\n", "a.py")}
    assert ("f(a, b.c)", "f(b.c, a)") in found
    assert ("min(a, b)", "min(b, a)") not in found
    assert ("while a < b: g()", "while not (a < b): g()") in found
    found = {m.after for m in mutants("text = read(name, encoding='utf-8')\n", "a.py")}
    assert found == {"text = None", "read(None, encoding='utf-8')"} or found == {
        "text = None",
        "read(encoding='utf-8')",
    }


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A repository of one room, whose tests look at the module here and in another process."""
    home = tmp_path / "home"
    files = {
        "src/ral/__init__.py": "",
        "src/ral/objective/__init__.py": "",
        "src/ral/objective/sums.py": (
            "def add(a, b):\n    return a + b\n\n\ndef count(n):\n    while n > 0:\n        n -= 1\n    return n\n\n\n"
            "def unseen(a):\n    return a * 2\n"
        ),
        "tests/__init__.py": "",
        "tests/objective/__init__.py": "",
        "tests/objective/test_a.py": (
            "import subprocess, sys\n\n\ndef test_elsewhere():\n    code = 'from ral.objective.sums import add; print(add(2, 3))'\n"
            "    assert subprocess.check_output([sys.executable, '-c', code]) == b'5\\n'\n"
        ),
        "tests/objective/test_sums.py": (
            "import pytest\nfrom ral.objective.sums import add, count\n\n\ndef test_here():\n    assert add(1, 0) == 1\n    assert count(3) == 0\n"
            "\n\n@pytest.fixture(scope='module')\ndef total():\n    return add(2, 0)\n\n\ndef test_first(total):\n    assert total\n"
            "\n\ndef test_second(total):\n    assert total\n"
        ),
    }
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(home), *command], check=True, capture_output=True)
    return Tree(home, tmp_path / "unpacked")


FILE = "src/ral/objective/sums.py"


def test_a_mutant_gets_the_tests_that_run_its_statement(tree: Tree, tmp_path: Path) -> None:
    """Those of a module's fixture too, which the first of them alone runs, and last those that start processes."""
    kept = tmp_path / "kept.json"
    covering = mutation.warm_up(tree, tree.tests("objective"), (), kept)
    source, name = (tree.folder / FILE).read_text(), "objective/sums.py"
    here, first, second = (f"tests/objective/test_sums.py::test_{t}" for t in ("here", "first", "second"))
    elsewhere = "tests/objective/test_a.py::test_elsewhere"

    def tests(covering: Covering, change: str) -> tuple[set[str], str]:
        found = covering.of(name, source, source[: source.index(change)].count("\n") + 1)
        return set(found[:-1]), found[-1]

    assert tests(covering, "a + b") == ({here, first, second}, elsewhere)
    assert tests(covering, "n -= 1") == ({here}, elsewhere)
    assert tests(covering, "a * 2") == (set(), elsewhere)
    assert covering.starters == {elsewhere}

    def add(file: str, text: str) -> None:
        path = tree.folder / file
        path.write_text(path.read_text() + text)

    add(
        "tests/objective/test_a.py",
        "\n\ndef test_unseen():\n    from ral.objective.sums import unseen\n    assert unseen(2) == 4\n",
    )
    (tree.folder / "tests/objective/test_sums.py").unlink()
    again = mutation.warm_up(tree, tree.tests("objective"), (), kept)
    assert tests(again, "a * 2") == ({"tests/objective/test_a.py::test_unseen"}, elsewhere)
    assert tests(again, "a + b") == (set(), elsewhere), "a test that is gone is forgotten"
    add(FILE, "\n\nLIMIT = 2\n")
    moved = mutation.warm_up(tree, tree.tests("objective"), (), kept)
    assert tests(moved, "a + b") == ({"tests/objective/test_a.py::test_unseen"}, elsewhere), (
        "lines moved: all of the module"
    )


def test_a_place_is_its_statement_or_the_head_of_it() -> None:
    source = "X = 1\nclass A:\n    y = 2\n    def f(self,\n          a=1):\n        if (a or\n            self):\n            return (a,\n                    2)\n"
    places = [statement(source, line) for line in range(1, 10)]
    function, head, body = range(4, 10), range(6, 8), range(8, 10)
    assert places == [None, None, None, function, function, head, head, body, body]


def test_mutants_are_killed_here_and_in_other_processes_and_by_the_clock(tree: Tree) -> None:
    tests = ["tests/objective/test_sums.py", "tests/objective/test_a.py"]
    untouched = (tree.folder / FILE).read_text()
    assert run_tests(tree, tests, Limits(30, 60), write_bytecode=True).failed is None

    def after(old: str, new: str, limit: float = 30) -> tuple[str | None, bool]:
        assert old in untouched
        with tree.changed(FILE, untouched.replace(old, new)):
            found = run_tests(tree, tests, Limits(limit, 60))
        return found.failed, found.timeout

    here, elsewhere = "tests/objective/test_sums.py::test_here", "tests/objective/test_a.py::test_elsewhere"
    assert after("a + b", "b") == (here, False)
    assert after("a + b", "a - b") == (elsewhere, False)
    assert after("n -= 1", "n += 1", limit=5) == (None, True)
    assert after("def add", "def other")[0] == "tests/objective/test_sums.py"
    assert after("return n", "__import__('os').abort()") == ("the process died", False)
    assert after("a * 2", "a / 2") == (None, False)
    assert (tree.folder / FILE).read_text() == untouched
    assert run_tests(tree, tests, Limits(30, 60)).failed is None


def test_a_sample_grows_and_a_run_goes_on_where_it_was(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutation, "COVERINGS", tmp_path / "coverings")
    monkeypatch.setattr(mutation, "PATIENCE", 2.0)
    few, more = (sample(tree, "objective", 0, n) for n in (3, 6))
    assert [mutant.key for _, mutant in few] == [mutant.key for _, mutant in more[:3]]
    assert [m.key for _, m in sample(tree, "objective", 1, 6)] != [m.key for _, m in more]
    mutation.run_room(tree, "objective", Plan(2), tmp_path, "a machine")
    first = read(tmp_path / "objective.jsonl")
    mutation.run_room(tree, "objective", Plan(3), tmp_path, "a machine")
    assert len(first) == 2
    assert read(tmp_path / "objective.jsonl")[:2] == first
    assert len(read(tmp_path / "objective.jsonl")) == 3


def test_a_survivor_can_be_run_behind_given_test_files_alone(tree: Tree, tmp_path: Path) -> None:
    (tree.folder / "tests/objective/test_b.py").write_text(
        "from ral.objective.sums import unseen\n\n\ndef test_it():\n    assert unseen(2) == 4\n"
    )
    mutant = next(m for _, m in sample(tree, "objective", 0) if m.before == "a * 2")
    survivor = replace(result(mutant.key, "survived"), first="survived")
    mutation.write(tmp_path / "objective.jsonl", [survivor])
    plan = Plan(0, also=("tests/objective/test_b.py",), survivors=True, seconds=0)
    mutation.run_room(tree, "objective", plan, tmp_path, "a machine")
    (found,) = read(tmp_path / "objective.jsonl")
    assert (found.outcome, found.first, found.by) == ("killed", "survived", "tests/objective/test_b.py::test_it")


def test_tests_that_fail_anyway_judge_no_mutant(tree: Tree, tmp_path: Path) -> None:
    (tree.folder / "tests/objective/test_a.py").write_text("def test_a():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"without a mutation, tests/objective/test_a\.py::test_a fails"):
        mutation.warm_up(tree, tree.tests("objective"), (), tmp_path / "kept.json")
    left_out = ["--deselect=tests/objective/test_a.py::test_a"]
    assert mutation.warm_up(tree, tree.tests("objective"), left_out, tmp_path / "kept.json").tests


def result(key: str, outcome: str) -> Result:
    return Result(key, "src/ral/a.py", 1, "number", "1 | 2", "2", outcome, None, False, 1.0, "abc", 0, "a machine")


def test_equivalent_survivors_count_neither_way() -> None:
    rows = [result("a", "killed"), result("b", "timeout"), result("c", "survived"), result("d", "survived")]
    reasons = {"d": {"kind": "equivalent", "reason": "as before"}, "c": {"kind": "accepted", "reason": "speed only"}}
    found = score(rows, reasons)
    assert (found.run, found.killed, found.equivalent) == (4, 2, 1)
    assert found.percent == pytest.approx(100 * 2 / 3)
    shown = page({"objective": rows, "runs": []}, reasons)
    assert "| `objective` | 4 | 2 | 1 | 66.7 % [21, 94] | abc | a machine |" in shown
    assert "| `a.py:1` | `` 1 \\| 2 `` → `` 2 `` | equivalent | as before |" in shown
    assert "Not run yet:" in shown
    assert "not looked at yet" in page({"objective": [replace(rows[2], key="new")]}, reasons)


def test_what_a_seed_found_at_first_is_a_line_of_its_own() -> None:
    """Tests that were written for its survivors do not raise it. Results from before that was noted have no part in it."""
    rows = [
        replace(result(key, outcome), seed=2, first=first)
        for key, outcome, first in [
            ("a", "killed", "killed"),
            ("b", "killed", "survived"),
            ("c", "survived", "survived"),
        ]
    ]
    same = {"c": {"kind": "equivalent", "reason": "as before"}}
    gone = replace(result("e", "survived"), seed=2, first="survived", gone=True)
    shown = page({"objective": [*rows, gone]}, same)
    assert "| 2 | 4 | 1 | 1 | 33.3 % [6, 79] | 100.0 % [34, 100] of 3 |" in shown, (
        "a place that is gone counted at first"
    )
    assert shown.count("| `a.py:1` |") == 1
    shown = page({"objective": [*rows, result("d", "killed")]}, same)
    assert "| `objective` | 4 | 3 | 1 | 100.0 % [44, 100]" in shown
    assert "| 2 | 3 | 1 | 1 | 50.0 % [9, 91] | 100.0 % [34, 100] of 3 |" in shown
    assert "| 0 |" not in shown


def test_the_page_is_that_of_the_result_files() -> None:
    assert PAGE.read_text("utf-8") == page(all_results(), read_reasons()), "run python -m experiments.mutation --table"


def test_every_reason_is_of_a_survivor() -> None:
    survivors = {row.key for room in ROOMS for row in all_results()[room] if row.outcome == "survived"}
    assert read_reasons().keys() <= survivors
    assert {reason["kind"] for reason in read_reasons().values()} <= {"equivalent", "accepted", "pending"}
