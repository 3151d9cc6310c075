"""What `ral check` reads: the data of files, or of a recipe with its rewards, as training would read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ral.data.named_sources import Source, named_sets, sources_of
from ral.data.record import Record
from ral.data.settings import PromptSettings
from ral.errors import DataError, UsageError
from ral.recipe import load_recipe, parse_settings
from ral.rewards.answers import Mode, unscorable
from ral.rewards.solutions import judges_answers
from ral.testbed.sets import read_source


@dataclass(frozen=True)
class CheckedData:
    """The arguments of `ral.data.check.check_records` that data and recipe decide.

    Attributes:
        read: the training records; it gets what takes the error of each row. evaluation: the held-out records.
        unscorable: why no answer to a record could ever be right, or "". model: what the recipe trains.
    """

    read: Callable[[Callable[[DataError], None]], Iterator[Record]]
    evaluation: Iterable[Record]
    unscorable: Callable[[Record], str]
    prompt: PromptSettings
    model: str | None = None


def checked_data(
    data: Sequence[str],
    words: Sequence[str],
    *,
    split: str,
    eval_data: str | None,
    scorer: Mode | None,
    reading: Mapping[str, Any],
) -> CheckedData:
    """Files, folders and hub ids, or one recipe of `ral train`.

    Args:
        words: prompt settings of the command line. reading: arguments of `read_records`.

    Raises UsageError for an option beside a recipe that the recipe itself says, and what `load_recipe` raises.
    """
    reading = {name: value for name, value in reading.items() if value is not None}
    if len(data) == 1 and data[0].endswith((".yaml", ".yml")):
        given = {"eval_data": eval_data, "scorer": scorer, **reading}
        if own := [name for name, value in given.items() if value is not None]:
            option = {"root": "data_root"}.get(own[0], own[0])
            raise UsageError(f"{option} is the recipe's to say; leave it out, or check the data file itself.")
        return _of_recipe(Path(data[0]), words)
    evaluation = [] if eval_data is None else [Source(path=eval_data)]
    return CheckedData(
        read=partial(_read, [Source(path=one) for one in data], split, reading),
        evaluation=_read(evaluation, "test", reading, None),
        unscorable=partial(_unscorable, mode=scorer or "strict"),
        prompt=PromptSettings(**parse_settings(PromptSettings, words)),
    )


def _of_recipe(path: Path, words: Sequence[str]) -> CheckedData:
    recipe = load_recipe(path, words)
    sets = {} if recipe.eval_data is None else named_sets(recipe.eval_data)
    judged = judges_answers(recipe.reward_funcs)
    return CheckedData(
        read=partial(_read, sources_of(recipe.data), "train", recipe.reading),
        evaluation=_read(list(chain.from_iterable(sets.values())), "test", recipe.reading, None),
        unscorable=partial(_unscorable, mode=recipe.args.scorer) if judged else lambda record: "",
        prompt=recipe.args.prompt,
        model=recipe.model,
    )


def _read(
    sources: Sequence[Source],
    split: str,
    reading: Mapping[str, Any],
    on_error: Callable[[DataError], None] | None,
) -> Iterator[Record]:
    for source in sources:
        yield from read_source(source, split, **reading, on_error=on_error)


def _unscorable(record: Record, mode: Mode) -> str:
    """Why no answer to one of the record's solutions could ever be right, or ""."""
    reasons = (unscorable(one, record.problem_type, record.options, mode) for one in record.solutions)
    return next(filter(None, reasons), "")
