"""Attention on a fixed text: a model looks while it is made to write the completions of another evaluation.

Under a reward on attention a model may adapt its text to the attention that it has (arXiv 2610.05023). So the attention of two
checkpoints is compared on the same words: those of one of them, or of the start. Scores are then those of the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ral.attention import Prompt
from ral.data.record import Record
from ral.data.templates import turn_end
from ral.errors import DataError
from ral.evaluate.items import Item, read_items
from ral.rollouts.sampling import Completion
from ral.runs.names import ITEMS


def fixed_completions(
    folder: str, asked: Iterable[tuple[Record, Prompt]], processor: Any, opening: str
) -> Iterator[tuple[int, Record, Prompt, Completion]]:
    """What another model wrote in the evaluation in `folder`: each record's number, itself, its prompt, and the completion's tokens.

    Texts are encoded again, so that all models that share a tokenizer read the same tokens. `opening` is what the prompt says of the
    completion already.

    Raises DataError for a folder without items, and for a record that it does not hold.
    """
    file = Path(folder) / ITEMS
    if not file.is_file():
        raise DataError(f"text_from={folder}: expected the folder of an evaluation, with {ITEMS} in it")
    items = _items(file, file.stat().st_mtime_ns)
    tokenizer = getattr(processor, "tokenizer", processor)
    end = turn_end(processor)
    for number, (record, prompt) in enumerate(asked):
        if record.id not in items:
            raise DataError(
                f"{record.origin}: text_from={folder} holds no completion of {record.id!r}; evaluate the same items"
            )
        item = items[record.id]
        ids = tokenizer.encode(item.completion.removeprefix(opening), add_special_tokens=False)
        last = [] if item.truncated else [tokenizer.eos_token_id if end is None else end]
        yield number, record, prompt, Completion(torch.tensor([*ids, *last]), item.truncated)


@lru_cache(maxsize=1)
def _items(file: Path, changed: int) -> dict[str, Item]:
    """The items of a file as it was when it last `changed`; an evaluation asks for them batch by batch."""
    return {item.id: item for item in read_items(file)}
