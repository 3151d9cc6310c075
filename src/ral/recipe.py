"""Recipes: a flat YAML file of about twenty lines, every key of which the command line can override.

The keys are those of a `Task` (what to train, on what) and of its settings (how). `Recipe` is the task of `ral train`,
with the settings of `RALConfig`; other commands read tasks of their own with the same loader. A recipe is data only: YAML
is read with a safe loader, and nothing in it is imported or evaluated.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

import yaml
from peft import LoraConfig
from transformers import BitsAndBytesConfig, TrainingArguments

from ral.config import RALConfig
from ral.errors import DataError
from ral.runs.resume import without_removed


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a recipe trains, and on what; `args` says how, with every setting resolved and checked."""

    model: str = field(
        metadata={"help": "Checkpoint folder or hub id of the model to train; `start` is the embedded one."}
    )
    data: str | list[str] = field(
        metadata={
            "help": "Training data: a file, a folder, a hub id, `rings`, `easy-vqa`, `episodes` (video), `told`, `needles` (text); "
            "or a list of them, to be mixed."
        }
    )
    eval_data: str | list[str] | None = field(
        default=None, metadata={"help": "Held-out data, in any form `data` takes."}
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder that media paths in the data start from."})
    allow_outside: bool = field(
        default=False, metadata={"help": "Accept media paths, and links, that leave that folder."}
    )
    peft: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of `peft.LoraConfig`; all weights are trained without it."}
    )
    quantization: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of `BitsAndBytesConfig`, such as `load_in_4bit`; needs `peft`."}
    )
    args: TrainingArguments

    def settings(self) -> dict[str, Any]:
        """Every setting that is not None, as plain YAML values; `load_recipe` takes them back."""
        task = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "args"}
        return {key: value for key, value in {**task, **self.args.to_dict()}.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Recipe(Task):
    """The task of `ral train`: reinforcement, and distillation from a teacher."""

    teacher: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or hub id of the model to distil from."}
    )
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "Names of reward functions; 0.9 · accuracy + 0.1 · format if not given."}
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One weight per reward function."})
    look_steps: int = field(
        default=0, metadata={"help": "Every n steps, where the model looks is kept for the report; 0: never."}
    )
    look_items: int = field(default=6, metadata={"help": "Records of `eval_data` that it is looked at with."})
    args: RALConfig


#: The keys of the mappings in a recipe.
_NESTED: dict[str, list[str]] = {
    "peft": [item.name for item in fields(LoraConfig)],
    "quantization": [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"],
}

AnyTask = TypeVar("AnyTask", bound=Task)


@overload
def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load_recipe(path: Path | str, overrides: Sequence[str], kind: type[AnyTask]) -> AnyTask: ...
def load_recipe(path: Path | str, overrides: Sequence[str] = (), kind: type[Task] = Recipe) -> Task:
    """Read a recipe; `overrides` are command-line words (`--field value …`, `--field=value`) and win over the file.

    Values take the type that the field declares, in `kind` or in the class of its `args`. Without an `output_dir` the run
    goes to `runs/<name of the recipe>`.

    Raises DataError, which names the file and the key, for a file that cannot be read, invalid YAML, a key given twice,
    an unknown key (with the nearest known one), a value of the wrong type, and settings that the class of `args` refuses.
    """
    path = Path(path)
    hints = get_type_hints(kind)
    settings: type[TrainingArguments] = hints.pop("args")
    known = {**_settable(settings), **hints}
    given = without_removed({"output_dir": f"runs/{path.stem}", **_read(path)}, f"{path}")
    _check_known(given, known, f"{path}")
    override = without_removed(_parse_overrides(overrides), "command line")
    _check_known(override, known, "command line")
    values = _typed({**given, **override}, known, path)
    for key, names in _NESTED.items():
        _check_known(values.get(key) or {}, names, f"{path}: {key}")
    try:
        args = settings(**{key: value for key, value in values.items() if key not in hints})
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}") from error
    return kind(args=args, **{key: value for key, value in values.items() if key in hints})


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2, no key twice, and no references.

    YAML 1.1 reads `save_strategy: no` as False and `learning_rate: 1e-5` as a string. References to references can stand
    for more values than any machine holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "a reference (*name); write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
    except OSError as error:
        raise DataError(f"{path}: cannot read the recipe ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8; a recipe is a YAML file.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{path}{line}: not valid YAML ({error.problem}).") from error
    except (yaml.YAMLError, RecursionError) as error:  # control characters; brackets without end
        raise DataError(f"{path}: not valid YAML ({_first_line(error)}).") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path}: a recipe is a flat mapping of `key: value` lines.")
    return content


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--a 1 --b=2 --c 3 4` as {"a": "1", "b": "2", "c": ["3", "4"]}; text in brackets or braces is read as YAML."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            if key in found:
                raise DataError(f"command line: --{key} is given twice.")
            found[key] = [value] if equals else []
        elif found:
            found[next(reversed(found))].append(word)
        else:
            raise DataError(f"command line: {word!r} follows no field; write overrides as --field value.")
    for key, values in found.items():
        if not values:
            raise DataError(f"command line: --{key} has no value; write --{key} VALUE (true or false for a switch).")
    return {key: _word(values[0]) if len(values) == 1 else values for key, values in found.items()}


def _word(text: str) -> Any:
    if text == "null":
        return None
    if not text.startswith(("[", "{")):
        return text
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"command line: {text[:60]!r} is not valid YAML; check its brackets and quotes.") from error


def _settable(settings: type[TrainingArguments]) -> dict[str, Any]:
    """The fields that can be given, with their declared types."""
    hints = get_type_hints(settings) | {"fsdp": bool | str | None}  # a switch, which transformers declares as text
    return {item.name: hints[item.name] for item in fields(settings) if item.init}


def _check_known(keys: Iterable[str], known: Collection[str], where: str) -> None:
    for key in keys:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.5)
            advice = f"; did you mean {near[0]!r}?" if near else "."
            raise DataError(f"{where}: unknown key {key!r}{advice}")


def _typed(values: Mapping[str, Any], hints: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The values in the types that their fields declare."""
    typed = {}
    for key, value in values.items():
        try:
            typed[key] = _convert(hints[key], value)
        except ValueError as error:
            raise DataError(f"{path}: {key}: expected {_spelled(hints[key])}, got {json.dumps(value)}.") from error
    for key in ("model", "data"):
        if not typed.get(key):
            raise DataError(f"{path}: {key!r} is missing; a recipe names at least a model and its data.")
    return typed


def _convert(hint: Any, value: Any) -> Any:
    """`value` as the first alternative of `hint` that takes it; text, which takes every scalar, comes late."""
    for kind in sorted(_alternatives(hint), key=lambda kind: (get_origin(kind) is list, kind is str)):
        try:
            return _convert_to(kind, value)
        except ValueError:
            continue
    raise ValueError(value)


def _convert_to(kind: Any, value: Any) -> Any:
    origin = get_origin(kind) or kind
    if origin is Any or (origin is type(None) and value is None) or (origin is dict and isinstance(value, dict)):
        return value
    if origin is list:
        return [_convert(get_args(kind)[0], item) for item in (value if isinstance(value, list) else [value])]
    if origin is bool and str(value).lower() in _SWITCH:
        return _SWITCH[str(value).lower()]
    if origin is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    if scalar and (origin in (int, float, str) or issubclass(origin, Enum)):
        return origin(value)
    raise ValueError(value)


_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows; a choice counts as the type of its values, and who takes it refuses unknown ones."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for part in get_args(hint) for kind in _alternatives(part))
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    return (hint,)


def _spelled(hint: Any) -> str:
    """A type as a recipe's author would say it."""
    names = {type(None): "null", dict: "mapping", str: "text", bool: "true or false"}
    kinds = (names.get(get_origin(kind) or kind, getattr(kind, "__name__", "value")) for kind in _alternatives(hint))
    return " or ".join(kinds)
