"""Boxes as answers: the coordinates a model writes them in, and solutions converted to these.

Data gives boxes in pixels of the original image. A model was taught to write them in pixels of the image as it is shown
(Qwen2.5-VL), in thousandths of its sides (Qwen3-VL), or in something else that its family names. The prompt says which, and the
solution is put into the same: how much two boxes overlap does not change with the scale or the order of the axes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from ral.data.box_fields import media_size
from ral.data.boxes import Size
from ral.data.record import Box, Record
from ral.data.stated_boxes import LOC_BINS, StatedBox
from ral.errors import ConfigError, DataError
from ral.families import BoxSpace, family_of_processor

#: The column of the data that names the space, where it is not the family's.
COLUMN = "box_space"
_NUMERAL = re.compile(r"[-+]?\d+(?:\.\d+)?")
#: Width and height of a medium in the spaces that do not depend on its pixels.
_SIDES: dict[BoxSpace, int] = {"thousandths": 1000, "thousandths_yx": 1000, "unit": 1, "loc": LOC_BINS}
#: Spaces whose boxes name y before x.
_Y_FIRST: tuple[BoxSpace, ...] = ("thousandths_yx", "loc")
_HINTS: dict[BoxSpace, str] = {
    "thousandths": "a box [x0, y0, x1, y1] in thousandths of the image's width and height, from 0 to 1000",
    "thousandths_yx": "a box [y0, x0, y1, x1] in thousandths of the image's height and width, from 0 to 1000",
    "unit": "a box [x0, y0, x1, y1] in shares of the image's width and height, from 0 to 1",
    "loc": "a box as the four location tokens of y0, x0, y1 and x1",
    "resized": "a box [x0, y0, x1, y1] in pixels of the image as it is shown to you",
}
#: Pixels of the original along a side below which a stated box shows nothing.
_THINNEST = 1e-3


def box_space(record: Record, processor: Any) -> BoxSpace:
    """In what the answer to this record is asked for; the prompt says it, so pixels of the original where no family does.

    Raises DataError where the data names an unknown space.
    """
    return _named(record) or family_of_processor(processor).box_space or "image"


def stated_space(record: Record, processor: Any, setting: BoxSpace | None = None) -> BoxSpace:
    """In what the model writes a box of its own accord: as it is asked to, or as the column, the setting or its family says.

    `setting` is that of the run (`evidence_box_space`). Raises DataError where the data names an unknown space, and ConfigError
    where nothing says it.
    """
    if record.problem_type == "box":
        return box_space(record, processor)
    found = _named(record) or setting or family_of_processor(processor).box_space
    if found is None:
        raise ConfigError(
            f"{record.origin}: boxes that the model states are read, but its makers have not published in which coordinates it "
            f"writes them; set evidence_box_space (or a column {COLUMN} of the data) to one of {', '.join(get_args(BoxSpace))} "
            "(docs/data.md, Boxes as answers), or choose another evidence_from"
        )
    return found


def require_stated_spaces(records: Iterable[Record], processor: Any, setting: BoxSpace | None) -> None:
    """Raise what `stated_space` raises for any of the records with images or videos."""
    for record in records:
        if record.has_media:
            stated_space(record, processor, setting)


def _named(record: Record) -> BoxSpace | None:
    """The space that the data names."""
    named = record.extra.get(COLUMN)
    if named is not None and named not in get_args(BoxSpace):
        raise DataError(f"{record.origin}: {COLUMN} is {named!r}; expected one of {', '.join(get_args(BoxSpace))}")
    return named


def box_hint(record: Record, processor: Any) -> str:
    """The form of the answer in words. Raises DataError for a medium that cannot be opened."""
    if hint := _HINTS.get(box_space(record, processor)):
        return hint
    if (size := original_size(record)) is None:
        return "a box [x0, y0, x1, y1]"
    return "a box [x0, y0, x1, y1] in pixels of the image, which is {} wide and {} high".format(*size)


def as_asked(record: Record, processor: Any, inputs: Mapping[str, Any]) -> Record:
    """The record with its solutions in what its answer is asked in; of any other problem type, and without media, as it is.

    `inputs` are the processor's tensors for its prompt. Boxes are of the first image, or of the first video.

    Raises DataError for a medium that cannot be opened, and for `resized` where the processor does not say the size.
    """
    if record.problem_type != "box" or (space := box_space(record, processor)) == "image":
        return record
    if (original := original_size(record)) is None:
        return record
    width, height = _axes(space, record, processor, inputs, original)
    scale = width / original[0], height / original[1]
    first, *others = (_written(solution, scale, space) for solution in record.solutions)
    return replace(record, solution=first, other_solutions=tuple(others))


def in_pixels(
    stated: StatedBox, space: BoxSpace, record: Record, processor: Any, inputs: Mapping[str, Any]
) -> Box | None:
    """A box that the model states, in pixels of the first image or video and within it; None where it cannot be one.

    That is where nothing of it is left, and where its numbers are of another scale: shares from 0 to 1 are no pixels and no
    thousandths, and what is above 1 is no share. A form that says its own axes (`StatedBox.form`) is read by them, any other in
    `space` (`stated_space`).

    Raises DataError for a medium that cannot be opened, and for `resized` where the processor does not say the size.
    """
    if (original := original_size(record)) is None:
        return None
    space = "loc" if stated.form == "loc" else space
    is_share = min(stated.corners) >= 0 and max(stated.corners) <= 1
    if stated.form != "loc" and is_share != (space == "unit"):
        return None
    corners = stated.corners
    if stated.form in ("box_2d", "loc") or (stated.form == "plain" and space in _Y_FIRST):
        corners = _swapped(corners)
    axes = _axes(space, record, processor, inputs, original)
    x0, y0, x1, y1 = (min(max(value / axes[i % 2], 0.0), 1.0) * original[i % 2] for i, value in enumerate(corners))
    return Box(x0, y0, x1, y1) if x1 - x0 >= _THINNEST and y1 - y0 >= _THINNEST else None


def _axes(space: BoxSpace, record: Record, processor: Any, inputs: Mapping[str, Any], original: Size) -> Size:
    """The width and height of the medium in this space."""
    if space == "image":
        return original
    if side := _SIDES.get(space):
        return side, side
    return _shown_size(record, processor, inputs)


def original_size(record: Record) -> Size | None:
    """(width, height) of what boxes in answers are of; None without images and videos."""
    media = [*record.images, *record.videos]
    try:
        return media_size(media[0], video=not record.images) if media else None
    except ValueError as error:
        raise DataError(f"{record.origin}: expected {error}") from error


def _shown_size(record: Record, processor: Any, inputs: Mapping[str, Any]) -> Size:
    """(width, height) in pixels that the processor has resized the first image or video to."""
    kind = "image" if record.images else "video"
    grid = inputs.get(f"{kind}_grid_thw")
    patch = getattr(getattr(processor, f"{kind}_processor", None), "patch_size", None)
    if grid is None or not isinstance(patch, int):
        others = ", ".join(name for name in get_args(BoxSpace) if name != "resized")
        raise DataError(
            f"{record.origin}: boxes are in pixels of the {kind} as it is shown (box_space: resized), but the model's processor, "
            f"{type(processor).__name__}, does not say which size that is; expected {kind}_grid_thw and a patch_size; name "
            f"another box_space: {others}"
        )
    _, rows, columns = grid[0].tolist()
    return columns * patch, rows * patch


def _swapped(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """x before y for y before x, and the other way round."""
    a, b, c, d = corners
    return b, a, d, c


def _written(solution: str, scale: tuple[float, float], space: BoxSpace) -> str:
    """A box on other axes as the space writes it, rounded unless it would vanish; what is no box stays as it is."""
    values = [float(numeral) * scale[axis % 2] for axis, numeral in enumerate(_NUMERAL.findall(solution))]
    if len(values) != 4:
        return solution
    x0, y0, x1, y1 = values
    a, b, c, d = (y0, x0, y1, x1) if space in _Y_FIRST else (x0, y0, x1, y1)
    if space == "loc":
        (a, c), (b, d) = _bins(a, c), _bins(b, d)
        return "".join(f"<loc{value:04.0f}>" for value in (a, b, c, d))
    coarse, fine = (3, 6) if space == "unit" else (0, 2)
    digits = coarse if round(a, coarse) < round(c, coarse) and round(b, coarse) < round(d, coarse) else fine
    return f"[{', '.join(f'{round(value, digits) + 0.0:.{digits}f}' for value in (a, b, c, d))}]"


def _bins(low: float, high: float) -> tuple[int, int]:
    """The location tokens of two ends, never the same."""
    first = min(max(round(low), 0), LOC_BINS - 2)
    return first, min(max(round(high), first + 1), LOC_BINS - 1)
