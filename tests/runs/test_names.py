"""Names of run files are spelt once."""

from __future__ import annotations

import ast
from pathlib import Path

import ral
from ral.runs import names

SOURCE = Path(ral.__file__).parent
FILES = {
    value for name, value in vars(names).items() if name.isupper() and isinstance(value, str) and "." in value
}  # fmt: skip


def spelt(path: Path) -> set[str]:
    """The names of run files that a module holds as a text of its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in FILES}


def test_no_other_module_spells_the_name_of_a_run_file() -> None:
    assert {"config.yaml", "metrics.jsonl", "items.jsonl", "summary.json", "quickstart.json"} <= FILES
    found = {path.relative_to(SOURCE).as_posix(): spelt(path) for path in SOURCE.rglob("*.py")}
    assert {module: texts for module, texts in found.items() if texts and module != "runs/names.py"} == {}


def test_evaluations_of_a_run_are_the_folders_that_hold_items(tmp_path: Path) -> None:
    for task in ("b", "a", "begun"):
        (tmp_path / "eval" / task).mkdir(parents=True)
    for task in ("b", "a"):
        (tmp_path / "eval" / task / "items.jsonl").touch()
    assert names.evaluations(tmp_path) == {task: tmp_path / "eval" / task for task in ("a", "b")}
    assert names.evaluations(tmp_path / "none") == {}


def test_folders_of_older_runs_keep_their_names() -> None:
    assert (names.EVALUATIONS, names.MEDIA) == ("eval", "media")
