"""Nothing is so big that one has to scroll through it: functions, classes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "ral"
LONGEST_FUNCTION, LONGEST_CLASS = 60, 350

#: What is still bigger, to be cut by who owns it: an entry goes when it is.
TO_BE_CUT: set[str] = set()


def too_big() -> Iterator[str]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            limit = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > limit:
                    yield f"{path.relative_to(SOURCE).as_posix()}: {node.name}"


def test_no_function_is_longer_than_a_screen_and_no_class_than_350_lines() -> None:
    found = set(too_big())
    assert not found - TO_BE_CUT, "cut it where it reads better"
    assert not TO_BE_CUT - found, "it has been cut: take it from the list"
