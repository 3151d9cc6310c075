"""What is special about an architecture stands in its family: nothing else in the package asks for its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ral import families
from ral.families import known_types

SOURCE = Path(families.__file__).parents[1]
MODULES = [
    path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] not in ("families", "testbed")
]
#: How the names of transformers' classes begin, for the known architectures.
CLASSES = tuple({CONFIG_MAPPING_NAMES[kind].removesuffix("Config").removesuffix("Text") for kind in known_types()})


def is_name(text: object) -> bool:
    return isinstance(text, str) and (text in known_types() or text.startswith(CLASSES))


def asked(tree: ast.AST) -> Iterator[str]:
    """Where code depends on an architecture's name, in words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "model_type":
            yield f"line {node.lineno}: model_type"
        if isinstance(node, ast.Compare):
            for part in (node.left, *node.comparators):
                # `type(self).__name__` is a class's own name.
                if any(
                    isinstance(name, ast.Attribute)
                    and "type(self)" not in ast.unparse(name)
                    and name.attr in ("__name__", "__qualname__")
                    for name in ast.walk(part)
                ):
                    yield f"line {node.lineno}: the name of a class is compared"
                texts = [text.value for text in ast.walk(part) if isinstance(text, ast.Constant)]
                yield from (f"line {node.lineno}: compared with {text!r}" for text in texts if is_name(text))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            names = [name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)]
            if found := [name for name in names if name.startswith(CLASSES)]:
                yield f"line {node.lineno}: {node.func.id} of {found}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_name_of_an_architecture_is_compared(module: Path) -> None:
    assert not list(asked(ast.parse(module.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "code",
    [
        "config.model_type in known",
        "'Qwen3' in type(processor).__name__",
        "name == 'qwen2_5_vl'",
        "isinstance(model, (int, LlamaForCausalLM))",
    ],
)
def test_the_test_finds_them(code: str) -> None:
    assert list(asked(ast.parse(code)))


def test_a_family_is_a_small_file() -> None:
    room = Path(families.__file__).parent
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in room.glob("*.py")}
    base = {
        "family.py",
        "registry.py",
        "__init__.py",
        "tiles.py",
        "qwen_vl.py",
    }  # qwen_vl: three families and their positions
    assert {name: length for name, length in lengths.items() if length > 60 and name not in base} == {}
