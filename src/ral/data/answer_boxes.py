"""Boxes as answers: the coordinates a model writes them in, and solutions converted to these.

Data gives boxes in pixels of the original image. A model was taught to write them in pixels of the image as it is shown
(Qwen2.5-VL), in thousandths of its sides (Qwen3-VL), or in the original's pixels. The prompt says which, and the solution is
put into the same: how much two boxes overlap does not change with the scale of the axes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from ral.data.box_fields import media_size
from ral.data.boxes import Size
from ral.data.record import Box, Record
from ral.errors import DataError
from ral.families import BoxSpace, family_of_processor

#: The column of the data that names the space, where it is not the family's.
COLUMN = "box_space"
_NUMERAL = re.compile(r"[-+]?\d+(?:\.\d+)?")


def box_space(record: Record, processor: Any) -> BoxSpace:
    """In what the answer to this record is asked for. Raises DataError where the data names an unknown space."""
    named = record.extra.get(COLUMN)
    if named is None:
        return family_of_processor(processor).box_space
    if named not in get_args(BoxSpace):
        raise DataError(f"{record.origin}: {COLUMN} is {named!r}; expected one of {', '.join(get_args(BoxSpace))}")
    return named


def box_hint(record: Record, processor: Any) -> str:
    """The form of the answer in words. Raises DataError for a medium that cannot be opened."""
    space = box_space(record, processor)
    if space == "thousandths":
        return "a box [x0, y0, x1, y1] in thousandths of the image's width and height, from 0 to 1000"
    if space == "resized":
        return "a box [x0, y0, x1, y1] in pixels of the image as it is shown to you"
    if (size := original_size(record)) is None:
        return "a box [x0, y0, x1, y1]"
    return "a box [x0, y0, x1, y1] in pixels of the image, which is {} wide and {} high".format(*size)


def as_asked(record: Record, processor: Any, inputs: Mapping[str, Any]) -> Record:
    """The record with its solutions in what its answer is asked in; of any other problem type, and without media, as it is.

    `inputs` are the processor's tensors for its prompt. Boxes are of the first image, or of the first video.

    Raises DataError for a medium that cannot be opened.
    """
    if record.problem_type != "box" or box_space(record, processor) == "image":
        return record
    if (original := original_size(record)) is None:
        return record
    width, height = _axes(record, processor, inputs, original)
    scale = width / original[0], height / original[1]
    first, *others = (_scaled(solution, scale) for solution in record.solutions)
    return replace(record, solution=first, other_solutions=tuple(others))


def in_pixels(
    corners: tuple[float, float, float, float], record: Record, processor: Any, inputs: Mapping[str, Any]
) -> Box | None:
    """A box that the model states, in pixels of the first image or video and within it; None where nothing of it is left.

    `corners` are in what a box of this record is asked for in (`box_space`). Raises DataError for a medium that cannot be opened.
    """
    if (original := original_size(record)) is None:
        return None
    axes = _axes(record, processor, inputs, original)
    x0, y0, x1, y1 = (min(max(value / axes[i % 2], 0.0), 1.0) * original[i % 2] for i, value in enumerate(corners))
    return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _axes(record: Record, processor: Any, inputs: Mapping[str, Any], original: Size) -> Size:
    """The width and height of the medium in what boxes are asked for in."""
    space = box_space(record, processor)
    if space == "image":
        return original
    return (1000, 1000) if space == "thousandths" else _shown_size(processor, inputs)


def original_size(record: Record) -> Size | None:
    """(width, height) of what boxes in answers are of; None without images and videos."""
    media = [*record.images, *record.videos]
    try:
        return media_size(media[0], video=not record.images) if media else None
    except ValueError as error:
        raise DataError(f"{record.origin}: expected {error}") from error


def _shown_size(processor: Any, inputs: Mapping[str, Any]) -> Size:
    """(width, height) in pixels that the processor has resized the first image or video to."""
    kind = "image" if inputs.get("image_grid_thw") is not None else "video"
    _, rows, columns = inputs[f"{kind}_grid_thw"][0].tolist()
    patch = getattr(processor, f"{kind}_processor").patch_size
    return columns * patch, rows * patch


def _scaled(solution: str, scale: tuple[float, float]) -> str:
    """A box on other axes, in whole numbers unless it would vanish; what is no box stays as it is."""
    values = [float(numeral) for numeral in _NUMERAL.findall(solution)]
    if len(values) != 4:
        return solution
    exact = [value * scale[axis % 2] for axis, value in enumerate(values)]
    whole = [round(value) for value in exact]
    if whole[0] < whole[2] and whole[1] < whole[3]:
        return str(whole)
    return f"[{', '.join(f'{value:.2f}' for value in exact)}]"
