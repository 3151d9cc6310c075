"""Rooms and modules stand in an order, and imports go down it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ral.moved import MOVED

SOURCE = Path(__file__).parents[1] / "src" / "ral"

#: A room (or top module) imports from itself and from what stands before it.
ORDER = [
    "moved", "errors", "files", "families", "runs", "data", "statistics", "attention", "models", "testbed", "rewards", "objective",
    "rollouts", "config", "recipe", "options", "evaluate", "report", "plan", "training", "notebook", "quickstart", "cli",
]  # fmt: skip
HEAVY = {"torch", "torchvision", "transformers", "accelerate", "peft", "datasets"}

MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def imported(module: str) -> set[str]:
    """The dotted names that a module imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are spelt absolutely"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_the_rooms(module: str) -> None:
    own = room(module)
    assert own in ORDER, f"{module}: a new room; say in ORDER where it stands"
    rooms = {name.split(".")[1] for name in imported(module) if name.startswith("ral.")}
    above = rooms - set(ORDER[: ORDER.index(own) + 1])
    assert not above, f"{module} imports {sorted(above)}, which stand above it"


def test_no_circle() -> None:
    names = {
        module: "ral." + module.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for module in MODULES
    }
    known = set(names.values())
    graph = {}
    for module, name in names.items():
        found = {one if one in known else one.rpartition(".")[0] for one in imported(module)}
        graph[name] = found & known - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_a_module_imports_no_old_name() -> None:
    old = [name for module in MODULES for name in imported(module) if any(name.startswith(f"{o}.") for o in MOVED)]
    assert not old


def test_the_top_is_a_handful_of_modules() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= 9


def test_moved_modules_are_found_by_their_old_names() -> None:
    for old, new in MOVED.items():
        assert importlib.import_module(old) is importlib.import_module(new)
        assert importlib.import_module(new).__spec__.name == new
    assert importlib.import_module("ral.vllm.server") is importlib.import_module("ral.rollouts.vllm.server")


def test_the_reference_holds_every_room() -> None:
    """With all of its modules, as mkdocs.yml shows submodules."""
    pages = (SOURCE.parents[1] / "docs").glob("*.md")
    shown = [part for page in pages for part in re.findall(r"^::: ral\.(\w+)$", page.read_text("utf-8"), re.MULTILINE)]
    assert sorted(shown) == sorted(ORDER), "docs/api*.md: a page a stage"


@pytest.mark.parametrize("light", ["report", "cli", "statistics"])
def test_these_import_nothing_heavy(light: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, ral.{light}; print(*{{name.split('.')[0] for name in sys.modules}})"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not set(found.stdout.split()) & HEAVY
