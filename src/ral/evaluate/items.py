"""`Item`, a line of `items.jsonl`: one record with the model's answer, its score and its attention. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ral.errors import DataError
from ral.evaluate.grounding import Grounding
from ral.statistics import Outcome

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One record as a model answered it.

    Attributes:
        step: (looks only) the optimiser step after which the model answered.
        prediction: the answer's body; None where the completion holds none.
        correct: the score in [0, 1], 0 for an answer that cannot be read, which is `unparsed`.
        truncated: the completion was cut at the longest length. tokens: of the completion.
        cluster: names the image or video that several items share; an empty one stands alone.
        grounding: of the row that predicts the answer, in the layer (and the heads) that are reported; layers: in every decoder
            layer, mean over all heads; None for one without attention.
        probes: what `ral.evaluate.probes` found.
        map, image, size, boxes, times: what is drawn: the medium's map `{"grid": [h, w], "values"}`, its file in the folder, its
            (width, height) in pixels, its boxes (x0, y0, x1, y1), and of a video the seconds of its frames. A page checks
            them when it draws them.
    """

    step: int | None = None
    id: str
    question: str = ""
    solution: str = ""
    completion: str = ""
    prediction: str | None = None
    correct: float
    unparsed: bool = False
    truncated: bool = False
    tokens: int | None = None
    cluster: str = ""
    grounding: Grounding | None = None
    layers: tuple[Grounding | None, ...] | None = None
    probes: Json | None = None
    map: Any = None
    image: Any = None
    size: Any = None
    boxes: Any = ()
    times: Any = None

    def __post_init__(self) -> None:
        _ = self.outcome  # refuses a score that is none

    @property
    def outcome(self) -> Outcome:
        """The item as the statistics take it."""
        return Outcome(self.id, self.correct, self.cluster)

    @property
    def right(self) -> bool:
        """Whether the item counts as answered; scores between 0 and 1 (such as overlap with a box) do from a half on."""
        return self.correct >= 0.5

    def to_json(self) -> Json:
        """The item as a line of `items.jsonl` holds it."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("step", "times"):
            if row[name] is None:
                del row[name]
        return row | {
            "grounding": None if self.grounding is None else self.grounding.as_dict(),
            "layers": None if self.layers is None else [one and one.as_dict() for one in self.layers],
            "boxes": list(self.boxes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Item:
        """The item of a line; `where` names file and line in the errors.

        Only `id` and `correct` have to be there: older evaluations lack some of the others. Raises DataError, which names the field, for
        a field that is missing, unknown or of another kind, and for a score that is no number in [0, 1].
        """
        if unknown := sorted(values.keys() - _READ.keys()):
            raise DataError(f"{where}: unknown field {unknown[0]!r}; the fields of an item are {', '.join(_READ)}")
        for name in ("id", "correct"):
            if name not in values:
                raise DataError(f"{where}: field {name!r} is missing; expected a line of an evaluation's items")
        read = {}
        for name, value in values.items():
            try:
                read[name] = _READ[name](value)
            except (TypeError, ValueError) as error:
                raise DataError(f"{where}: field {name!r}: expected {error}, found {value!r:.80}") from error
        read.setdefault("unparsed", "prediction" in read and read["prediction"] is None)
        try:
            return cls(**read)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


def _a(kind: type, words: str, optional: bool = False) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not (isinstance(value, kind) or (optional and value is None)) or (kind is int and isinstance(value, bool)):
            raise TypeError(words + (" or null" if optional else ""))
        return value

    return read


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError("a text or a whole number")
    return str(value)


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number from 0 to 1")
    return float(value)


def _grounding(value: Any) -> Grounding | None:
    if value is None:
        return None
    names = [field.name for field in fields(Grounding)]
    numbers = isinstance(value, Mapping) and all(_is_number(number) for number in value.values())
    if not numbers or sorted(value) != sorted(names):
        raise TypeError(f"numbers called {', '.join(names)}, or null")
    return Grounding.from_dict(value)


def _layers(value: Any) -> tuple[Grounding | None, ...] | None:
    if value is not None and not isinstance(value, list):
        raise TypeError("a list with the grounding of every layer, or null")
    return None if value is None else tuple(_grounding(one) for one in value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _as_saved(value: Any) -> Any:
    return value


#: How every field of a line is read; what fails says what was expected.
_READ: dict[str, Callable[[Any], Any]] = {
    "step": _a(int, "a whole number"),
    "id": _id,
    "question": _a(str, "a text"),
    "solution": _a(str, "a text"),
    "completion": _a(str, "a text"),
    "prediction": _a(str, "a text", optional=True),
    "correct": _score,
    "unparsed": _a(bool, "true or false"),
    "truncated": _a(bool, "true or false"),
    "tokens": _a(int, "a whole number", optional=True),
    "cluster": _a(str, "a text"),
    "grounding": _grounding,
    "layers": _layers,
    "probes": _a(dict, "an object", optional=True),
    **dict.fromkeys(("map", "image", "size", "boxes", "times"), _as_saved),
}


def read_items(path: Path) -> Iterator[Item]:
    """The items of a complete evaluation, in order. Raises DataError, which names file, line and field."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a line of JSON ({error}); evaluate again") from error
            if not isinstance(values, dict):
                raise DataError(f"{path}:{number}: expected an object, found {values!r:.80}")
            yield Item.from_json(values, f"{path}:{number}")
