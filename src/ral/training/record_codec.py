"""Encodes typed records as JSON plus tensors, and decodes them. Every field is kept, new ones as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from ral.attention import Prompt
from ral.data.record import Box, Record, Span, Turn
from ral.rollouts.group import OldPass, ScoredGroup, Targets, TrainingGroup
from ral.rollouts.sampling import Completion

#: The records that may be met, by name.
KINDS = {
    kind.__name__: kind for kind in (TrainingGroup, ScoredGroup, Targets, OldPass, Completion, Record, Box, Span, Turn)
}
#: Fields that are not kept: the media of a record. A prompt keeps what the processor made of them.
MEDIA = {"images", "videos"}


def encode(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """`value` as JSON has it; its tensors are added to `tensors`, under names that begin with `path`.

    Of a prompt the processor's dict is kept, from which `decode` prepares it again. Anything that is neither a record of
    `KINDS` nor known to JSON becomes text. Raises TypeError for another record.
    """

    def inside(part: Any, name: object) -> Any:
        return encode(part, tensors, f"{path}.{name}" if path else str(name))

    match value:
        case Tensor():
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"$tensor": path}
        case Prompt():
            return {"$prompt": inside(value.inputs, "inputs")}
        case Mapping():
            return {"$mapping": [[key, inside(part, key)] for key, part in value.items()]}
        case tuple():
            return {"$tuple": [inside(part, i) for i, part in enumerate(value)]}
        case list():
            return [inside(part, i) for i, part in enumerate(value)]
        case None | bool() | int() | float() | str():
            return value
        case _ if is_dataclass(value):
            kind = type(value).__name__
            if KINDS.get(kind) is not type(value):
                raise TypeError(
                    f"{path}: {kind} is no record that a dump holds; add it to ral.training.record_codec.KINDS"
                )
            kept = [item.name for item in fields(value) if not (isinstance(value, Record) and item.name in MEDIA)]
            return {"$record": kind, "fields": {name: inside(getattr(value, name), name) for name in kept}}
        case _:
            return str(value)


def decode(tree: Any, tensors: Mapping[str, Tensor], prepare: Callable[[dict[str, Any]], Prompt]) -> Any:
    """The value that `encode` made `tree` of; `prepare` makes a prompt of the processor's dict."""

    def inside(part: Any) -> Any:
        return decode(part, tensors, prepare)

    match tree:
        case {"$tensor": path}:
            return tensors[path]
        case {"$prompt": inputs}:
            return prepare(inside(inputs))
        case {"$mapping": pairs}:
            return {key: inside(part) for key, part in pairs}
        case {"$tuple": parts}:
            return tuple(inside(part) for part in parts)
        case {"$record": kind, "fields": parts}:
            return KINDS[kind](**{name: inside(part) for name, part in parts.items()})
        case list():
            return [inside(part) for part in tree]
        case _:
            return tree
