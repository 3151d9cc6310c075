"""Data flows one way through the package, and so do imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ral"

#: A part imports from itself and from parts before it.
ORDER = [
    "files",
    "redaction",
    "resources",
    "data",
    "mathematics",
    "answers",
    "rewards",
    "attention",
    "testbed",
    "divergence",
    "objective",
    "anchors",
    "distill",
    "rollout",
    "evidence",
    "groups",
    "dumps",
    "guards",
    "interruption",
    "checkpoints",
    "resume",
    "runs",
    "config",
    "sharding",
    "vllm",
    "loading",
    "resumable",
    "guarded",
    "losses",
    "balance",
    "meters",
    "trainer",
    "recipe",
    "evaluate",
    "report",
    "live",
    "launch",
    "plan",
    "sft",
    "replay",
    "cli",
]
#: What a part may import from the package where that is less than everything before it.
ONLY = {"report": {"files", "data", "answers"}, "testbed": {"files", "data", "attention"}}
#: Single modules that a part may import beside these: statistics of saved scores, which load no model.
ALSO = {"report": {"ral.evaluate.statistics"}}
#: The entry point of the testbed drives the whole flow, as the command line does.
DRIVERS = {"testbed/quickstart.py"}
FORBIDDEN_IN_REPORT = {"torch", "torchvision", "transformers", "accelerate", "peft", "datasets"}

MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path.parent != SOURCE)
MODULES += sorted(path.name for path in SOURCE.glob("*.py") if path.name != "__init__.py")


def imported(module: str) -> set[str]:
    """The absolute dotted names that a module imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["ral", *module.split("/")[:-1]]
            base = package[: len(package) + 1 - node.level] if node.level else []
            names.update(".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
    return names


def part(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_the_data_flow(module: str) -> None:
    own = part(module)
    assert own in ORDER, f"{module}: a new part of the package; say in ORDER where it stands in the flow"
    before = set(ORDER[: ORDER.index(own) + 1])
    allowed = set(ORDER) - {"cli"} if module in DRIVERS else before & (ONLY.get(own, before) | {own})
    also = ALSO.get(own, set())
    names = {name for name in imported(module) if not any(name == one or name.startswith(f"{one}.") for one in also)}
    parts = {name.split(".")[1] for name in names if name.startswith("ral.")}
    assert parts <= allowed, f"{module} imports {sorted(parts - allowed)}, which come later in the flow"


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) == "report"])
def test_the_report_loads_no_model(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module)}
    assert not roots & FORBIDDEN_IN_REPORT


def test_the_reference_holds_every_part() -> None:
    """With all of its modules, as mkdocs.yml shows submodules."""
    pages = (SOURCE.parents[1] / "docs").glob("*.md")
    shown = [part for page in pages for part in re.findall(r"^::: ral\.(\w+)$", page.read_text("utf-8"), re.MULTILINE)]
    assert sorted(shown) == sorted(ORDER), "docs/api*.md: a page a stage"


def test_importing_the_report_imports_nothing_heavy() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, ral.report; print(*{name.split('.')[0] for name in sys.modules})"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not set(found.stdout.split()) & FORBIDDEN_IN_REPORT
