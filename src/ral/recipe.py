"""Recipes: flat YAML files of about twenty lines. The command line can override every key.

The keys are the fields of a `BaseRecipe` (model and data) and of its settings `args`. `Recipe` belongs to `ral train`
and has the settings of `RALConfig`. Other commands define their own recipes and use the same loader. A recipe is data only: a
safe loader reads the YAML, and nothing in it is imported or evaluated. `parse_settings` reads settings from a command line alone,
as for `ral eval`, by the same rules.

Slow imports come after the file is found to be valid.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ral.data.field_types import alternatives, spelled
from ral.data.named_sources import named_sets, sources_of
from ral.data.record import BoxScale
from ral.data.wording import read_template
from ral.errors import DataError, did_you_mean
from ral.files import parse_yaml, read_yaml
from ral.runs.foreign_keys import translated
from ral.runs.resume import without_removed

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ral.config import RALConfig


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """Model and data of a recipe. `args` holds all settings, resolved and checked."""

    model: str = field(
        metadata={"help": "Checkpoint folder or hub id of the model to train; `start` is the embedded one."}
    )
    data: str | list[str | dict[str, Any]] | dict[str, Any] = field(
        metadata={
            "help": "Training data: a file, a folder, a hub id, `rings`, `easy-vqa`, `episodes` (video), `told`, `needles` (text), `shortcut-word-97`; "
            "or a list of them, to be mixed. `{path: …, weight: …, max_records: …}` says how often and how much."
        }
    )
    eval_data: str | list[str | dict[str, Any]] | dict[str, Any] | None = field(
        default=None, metadata={"help": "Held-out data, in any form `data` takes, or several sets by name."}
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder that media paths in the data start from."})
    allow_outside: bool = field(
        default=False, metadata={"help": "Accept media paths, and links, that leave that folder."}
    )
    columns: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Maps `ral`'s column names to those of the data: `{problem: caption, images: picture}`."},
    )
    box_scale: BoxScale | None = field(
        default=None, metadata={"help": "Scale of boxes: `pixels`, `unit` (0 to 1) or `thousand` (0 to 1000)."}
    )
    peft: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of `peft.LoraConfig`; without it, all weights are trained."}
    )
    quantization: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of `BitsAndBytesConfig`, such as `load_in_4bit`; needs `peft`."}
    )
    args: TrainingArguments

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `read_records` that it holds."""
        named = {"columns": self.columns, "box_scale": self.box_scale}
        return {"root": self.data_root, "allow_outside": self.allow_outside, **named}

    def settings(self) -> dict[str, Any]:
        """Every setting that is not None, as plain YAML values; `load_recipe` takes them back."""
        task = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "args"}
        return {key: value for key, value in {**task, **self.args.to_dict()}.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """The recipe of `ral train`: reinforcement, and distillation from a teacher."""

    teacher: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or hub id of the model to distil from."}
    )
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "Names of reward functions; 0.9 · accuracy + 0.1 · format if not given."}
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One weight per reward function."})
    look_steps: int = field(
        default=0, metadata={"help": "Record where the model looks every n steps, for the report; 0: never."}
    )
    look_items: int = field(default=6, metadata={"help": "Number of records of `eval_data` for these looks."})
    look_probes: str = field(
        default="",
        metadata={"help": "Further measures of these looks, as `probes` of `ral eval`: `masking`, `heads` …"},
    )
    args: RALConfig

    @property
    def reading(self) -> dict[str, Any]:
        """As `BaseRecipe.reading`; rows need a solution only if a reward does."""
        from ral.rewards.solutions import reads_solutions

        return {**super().reading, "needs_solution": reads_solutions(self.reward_funcs)}


Task = BaseRecipe  # its older name

AnyRecipe = TypeVar("AnyRecipe", bound=BaseRecipe)


@overload
def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load_recipe(path: Path | str, overrides: Sequence[str], kind: type[AnyRecipe]) -> AnyRecipe: ...
def load_recipe(path: Path | str, overrides: Sequence[str] = (), kind: type[BaseRecipe] = Recipe) -> BaseRecipe:
    """Read a recipe; `overrides` are command-line words (`--field value …`, `--field=value`) and win over the file.

    Values take the type that the field declares, in `kind` or in the class of its `args`. Without an `output_dir` the run
    goes to `runs/<name of the recipe>`.

    Raises DataError, which names the file and the key, for a file that cannot be read, invalid YAML, a key given twice,
    an unknown key (with the nearest known one), a value of the wrong type, and settings that the class of `args` refuses.
    """
    path = Path(path)
    given, override = read_given(path, overrides)
    from transformers import TrainingArguments

    from ral.config import RALConfig

    hints = get_type_hints(kind, localns={"TrainingArguments": TrainingArguments, "RALConfig": RALConfig})
    settings: type[TrainingArguments] = hints.pop("args")
    known = {**_settable(settings), **hints}
    values = _typed(given, known, f"{path}")
    if template := values.get("prompt_template"):
        with _naming(path):
            values["prompt_template"] = read_template(template, path.parent)
    values |= _typed(override, known, "command line")
    for key in ("model", "data"):
        if not values.get(key):
            raise DataError(f"{path}: {key!r} is missing; a recipe names at least a model and its data.")
    with _naming(path):
        sources_of(values["data"])
        named_sets(values.get("eval_data") or "")
    values |= {key: _typed(values[key], types, f"{path}: {key}") for key, types in _nested().items() if values.get(key)}
    with _naming(path):
        args = settings(**{key: value for key, value in values.items() if key not in hints})
    return kind(args=args, **{key: value for key, value in values.items() if key in hints})


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the recipe whose settings are refused."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}") from error


def read_given(path: Path | str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the values of a recipe and of the command line without a check of keys and types. Imports nothing slow.

    Raises DataError for a file that cannot be read, invalid YAML, a key given twice and words that are no overrides, and
    ConfigError for a setting that was removed.
    """
    path = Path(path)
    given = {"output_dir": f"runs/{path.stem}", **read_yaml(path, "the recipe")}
    return without_removed(given, f"{path}"), without_removed(_parse_overrides(overrides), "command line")


def parse_settings(kind: type, words: Sequence[str]) -> dict[str, Any]:
    """The values that command-line words (`--field value`) give to fields of the dataclass `kind`, in the fields' types.

    Raises DataError, which names the key, for an unknown one, one given twice, and a value of the wrong type.
    """
    return _typed(_parse_overrides(words), get_type_hints(kind), "command line")


def split_settings(kind: type, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line words without those that give fields of the dataclass `kind` a value, and these, for `parse_settings`.

    A field takes the word that follows it; given twice, the last counts, as of other options. A switch needs no value:
    `--think` is true, and `--no-think` false.
    """
    hints = get_type_hints(kind)
    others: list[str] = []
    found: dict[str, str] = {}
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        name, equals, _ = word.removeprefix("--").replace("-", "_").partition("=")
        key = name.removeprefix("no_")
        if not word.startswith("--") or key not in hints or (key != name and hints[key] is not bool):
            others.append(word)
        elif equals or not (rest or hints[key] is bool):
            found[key] = word
        elif hints[key] is not bool or (key == name and rest and rest[-1] in ("true", "false")):
            found[key] = f"{word}={rest.pop()}"
        else:
            found[key] = f"--{key}={str(key == name).lower()}"
    return others, list(found.values())


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
        return parse_yaml(text)
    except ValueError as error:
        raise DataError(f"command line: {text[:60]!r} is not valid YAML; check its brackets and quotes.") from error


def _nested() -> dict[str, dict[str, Any]]:
    """The mappings in a recipe: their keys, with their types."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    defaults = {name: one.default for name, one in inspect.signature(BitsAndBytesConfig).parameters.items()}
    del defaults["kwargs"]
    quantization = {name: Any if default is None else type(default) for name, default in defaults.items()}
    return {"peft": get_type_hints(LoraConfig), "quantization": quantization}


def _settable(settings: type[TrainingArguments]) -> dict[str, Any]:
    """The fields that can be given, with their declared types."""
    hints = get_type_hints(settings) | {"fsdp": bool | str | None}  # a switch, which transformers declares as text
    return {item.name: hints[item.name] for item in fields(settings) if item.init}


def _check_known(keys: Iterable[str], known: Collection[str], where: str) -> None:
    for key in keys:
        if key not in known:
            if (here := translated(str(key))) is not None:
                raise DataError(f"{where}: {here}.")
            advice = did_you_mean(str(key), known, "check its name")
            raise DataError(f"{where}: unknown key {key!r}; {advice}")


def _typed(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values in the types that their fields declare. Raises DataError for an unknown key and for another type."""
    _check_known(values, hints, where)
    typed = {}
    for key, value in values.items():
        try:
            typed[key] = _adapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise DataError(
                f"{where}: {key}: expected {spelled(hints[key])}, got {json.dumps(value, default=str)}."
            ) from error
    return typed


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    config = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
    return TypeAdapter(
        _form(hint), config=None if is_dataclass(hint) else config
    )  # which has a configuration of its own


def _form(hint: Any) -> Any:
    """A declared type as recipes give it.

    A switch is no number, one value may stand for a list of one, and of several types the first that takes the value counts:
    text, which takes every number, comes late. A choice is text: who takes it refuses unknown ones, with advice.
    """
    kinds = sorted({*alternatives(hint)} - {NoneType}, key=_lateness)
    forms = [_one_form(kind) for kind in kinds]
    form = forms[0] if len(forms) == 1 else Annotated[Union[tuple(forms)], Field(union_mode="left_to_right")]  # noqa: UP007
    return form | None if NoneType in alternatives(hint) else form


def _lateness(kind: Any) -> tuple[bool, bool, str]:
    return get_origin(kind) is list, kind is str, str(kind)


def _one_form(kind: Any) -> Any:
    if kind in (int, float):
        return Annotated[kind, BeforeValidator(_not_a_switch)]
    if get_origin(kind) is list:
        return Annotated[list[_form(get_args(kind)[0])], BeforeValidator(_listed)]  # type: ignore[misc]
    return kind


def _not_a_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(value)
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
