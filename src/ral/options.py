"""All keys of a recipe, in groups, read from the source of the settings: `--help` and the page of options need no slow import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_TITLE = re.compile(r"\s*# --- (.*?) -+\s*$")


@dataclass(frozen=True)
class Option:
    """One key: its type and default as the source spells them, and its explanation. No default: it must be given."""

    name: str
    type: str
    default: str | None
    help: str


@dataclass(frozen=True)
class Group:
    """Keys that belong together; `of` is the class that declares them."""

    title: str
    of: str
    options: tuple[Option, ...]


def options_of(recipe: str) -> list[Group]:
    """The groups of keys of a recipe class, `module:Class`: its own, then those of the class of its `args`.

    A key that several classes declare counts where it is found first, as Python looks fields up.
    """
    module, _, name = recipe.partition(":")
    groups = list(_groups(module, name))
    arguments = next((option for group in groups for option in group.options if option.name == "args"), None)
    home = None if arguments is None else _home(module, arguments.type)
    settings = [] if home is None else list(_groups(*home))
    seen: set[str] = {"args"}
    found = []
    for group in [*_from_base_up(groups), *settings]:
        fresh = tuple(option for option in group.options if option.name not in seen)
        seen |= {option.name for option in fresh}
        if fresh:
            found.append(Group(group.title, group.of, fresh))
    return found


def _from_base_up(groups: list[Group]) -> list[Group]:
    """Model and data, which every recipe has, come first."""
    classes = list(dict.fromkeys(group.of for group in groups))
    return sorted(groups, key=lambda group: -classes.index(group.of))


def _groups(module: str, name: str) -> Iterator[Group]:
    """The groups of a class, and then those of its bases whose source is found, in the order Python looks fields up."""
    tree, lines = _source(module)
    of_name = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    node = of_name[name]
    title = _first_sentence(ast.get_docstring(node) or name)
    options: list[Option] = []
    last = node.lineno
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if headings := [found[1] for line in lines[last : field.lineno] if (found := _TITLE.match(line))]:
            if options:
                yield Group(title, f"{module}.{name}", tuple(options))
            title, options = headings[-1][:1].upper() + headings[-1][1:], []
        last = field.end_lineno or field.lineno
        if (option := _option(module, field)) is not None:
            options.append(option)
    if options:
        yield Group(title, f"{module}.{name}", tuple(options))
    for base in node.bases:
        if (home := _home(module, ast.unparse(base))) is not None:
            yield from _groups(*home)


def _option(module: str, field: ast.AnnAssign) -> Option | None:
    """The option that a dataclass field declares; None for a class variable."""
    name, kind = ast.unparse(field.target), ast.unparse(field.annotation).strip("'\"")
    if kind.startswith("ClassVar") or name.startswith("_"):
        return None
    if not isinstance(field.value, ast.Call):
        return Option(name, kind, None if field.value is None else _value(module, field.value), "")
    call, given = ast.unparse(field.value.func), {one.arg: one.value for one in field.value.keywords}
    if call == "setting":
        default, text = field.value.args
        return Option(name, kind, _value(module, default), _text(text))
    metadata = given.get("metadata")
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    helps = {_text(key): value for key, value in pairs if key is not None}
    factory = given.get("default_factory")
    made = factory.body if isinstance(factory, ast.Lambda) else factory
    default_node = given.get("default", made)
    return Option(
        name,
        kind,
        None if default_node is None else _value(module, default_node),
        " ".join(_text(helps["help"]).split()) if "help" in helps else "",
    )


def _value(module: str, node: ast.expr) -> str:
    """A default as the source spells it; a constant of this package by its value."""
    if isinstance(node, ast.Name):
        tree, _ = _source(module)
        for one in tree.body:
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == node.id:
                return ast.unparse(one.value)
            if (
                isinstance(one, ast.ImportFrom)
                and (one.module or "").startswith("ral.")
                and node.id in {a.name for a in one.names}
            ):
                return _value(str(one.module), node)
    return ast.unparse(node)


def _text(node: ast.expr) -> str:
    """A text of the source; parts that are computed stand as they are written."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ast.unparse(node)


def _first_sentence(text: str) -> str:
    sentence = " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
    return sentence.removesuffix(", as a base class of larger settings")


def _home(module: str, name: str) -> tuple[str, str] | None:
    """The module and name that `name` stands for in `module`; None for one whose source is not read."""
    tree, _ = _source(module)
    if any(isinstance(node, ast.ClassDef) and node.name == name for node in ast.walk(tree)):
        return module, name
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and any((a.asname or a.name) == name for a in node.names):
            package = module.rsplit(".", node.level)[0] + "." if node.level else ""
            return _defined(package + node.module, name)
    return None


def _defined(module: str, name: str) -> tuple[str, str] | None:
    """Where a class that `module` exports is written: packages pass names on."""
    homes = {
        ("transformers", "TrainingArguments"): "transformers.training_args",
        ("trl", "SFTConfig"): "trl.trainer.sft_config",
    }
    module = homes.get((module, name), module)
    if module.startswith(("ral.", "transformers.", "trl.")):
        tree, _ = _source(module)
        if any(isinstance(node, ast.ClassDef) and node.name == name for node in ast.walk(tree)):
            return module, name
        return _home(module, name)
    return None


@cache
def _source(module: str) -> tuple[ast.Module, list[str]]:
    """The syntax tree and lines of a module, which is not imported; nor are the packages it lies in."""
    top, *parts = module.split(".")
    spec = find_spec(top)
    assert spec is not None, f"{top} is no longer installed"
    assert spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*parts)
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    return ast.parse(text), text.splitlines()
