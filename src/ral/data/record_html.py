"""A record as a notebook shows it: what is asked, about which media, and the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ral.data.media import load_image
from ral.errors import DataError
from ral.runs.html import Markup, facts, picture


def record_html(record: Any) -> str:
    """A `Record` with its images, on which the boxes of the evidence are outlined; a medium that cannot be shown is named."""
    pairs: list[tuple[str, object]] = [("record", record.place)]
    pairs += [("system", record.system)] if record.system else []
    pairs += [(turn.role, turn.content) for turn in record.history]
    pairs += [("problem", record.problem)]
    pairs += [("options", "\n".join(record.options))] if record.options else []
    pairs += [("solution", " or ".join(record.solutions)), ("type", record.problem_type)]
    pairs += [("media", Markup(" ".join(_media(record))))] if record.has_media else []
    return facts(pairs)


def _media(record: Any) -> Iterator[str]:
    for number, medium in enumerate(record.images):
        boxes = [(box.x0, box.y0, box.x1, box.y1) for box in record.boxes if box.medium == number]
        try:
            yield picture(load_image(medium), boxes)
        except DataError as error:
            yield facts([("not shown", str(error))])
    for video in record.videos:
        yield facts([("video", str(video))])
