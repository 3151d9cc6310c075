"""Writes the tree of rooms into docs/architecture.md and README.md: `python -m docs.architecture`.

Every line is the first line of a module's or a room's docstring, so the tree says what the code says.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ral"
PAGES = {ROOT / "docs" / "architecture.md": True, ROOT / "README.md": False}
_BLOCK = re.compile(r"(<!-- tree -->\n).*?(<!-- /tree -->)", flags=re.DOTALL)


def first_line(module: Path) -> str:
    """What the module says it is, up to its first full stop or line break."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].rstrip(".")


def rooms() -> list[str]:
    """Names of the rooms and modules of the top, in the order of `tests/test_imports.py`."""
    order = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8"))
    [found] = [
        node.value
        for node in ast.walk(order)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER"
    ]
    names: list[str] = ast.literal_eval(found)
    return names


def tree(modules: bool) -> str:
    """The tree as a block of text; `modules` shows what is in the rooms, too."""
    lines = ["src/ral/"]
    for name in rooms():
        room = SOURCE / name
        if not room.is_dir():
            lines.append(f"  {name + '.py':<16} {first_line(room.with_suffix('.py'))}")
            continue
        lines.append(f"  {name + '/':<16} {first_line(room / '__init__.py')}")
        if modules:
            lines += _inside(room, depth=2)
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _inside(folder: Path, depth: int) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        indent = "  " * depth
        if path.suffix == ".py" and path.name != "__init__.py":
            yield f"{indent}{path.name:<{26 - 2 * depth}} {first_line(path)}"
        elif (path / "__init__.py").is_file():
            yield f"{indent}{path.name + '/':<{26 - 2 * depth}} {first_line(path / '__init__.py')}"
            yield from _inside(path, depth + 1)


def written(page: Path) -> str:
    """The page with its tree as it has to be."""
    return _BLOCK.sub(lambda block: block[1] + tree(PAGES[page]) + block[2], page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page), encoding="utf-8")
