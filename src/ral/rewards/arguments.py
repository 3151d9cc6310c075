"""What reward functions get of a record and its completions: TRL's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ral.data.media import load_image
from ral.data.prompt import build_messages
from ral.data.record import Record
from ral.rewards.calls import Arguments


def text_of(turns: Any) -> str:
    """The text of a prompt or completion, which TRL gives as a string or as a list of messages."""
    if isinstance(turns, str):
        return turns
    contents = [turn["content"] for turn in turns]
    return "\n".join(
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        for content in contents
    )


def of_record(
    record: Record, texts: list[str], ids: list[list[int]]
) -> tuple[list[Any], list[Any], dict[str, Sequence[Any]]]:
    """Prompts, completions and columns that reward functions get for completions of one record, as text and as token ids.

    A conversational prompt (one that the data holds as messages) and its completions are messages, as in TRL; others are texts.
    `images` are decoded. A column of the data that has the name of one of a function's own arguments (`prompts`, `completions`,
    `completion_ids`, `images`) gives way to it.
    """
    given = arguments(record, texts, ids)
    return list(given.prompts), list(given.completions), dict(given.columns)


def arguments(record: Record, texts: list[str], ids: list[list[int]], media: bool = True) -> Arguments:
    """As `of_record`.

    Args:
        media: decode the images; False where no function sees them.
    """
    images = [load_image(image, record.origin) for image in record.images] if media else []
    columns: dict[str, Sequence[Any]] = {name: [value] * len(texts) for name, value in record.columns().items()}
    columns |= {"completion_ids": ids}
    if images:
        columns["images"] = [images] * len(texts)
    words = [record.problem] * len(texts), texts
    if not record.conversational:
        return Arguments(*words, columns)
    prompt = _messages(record, images)
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    return Arguments([prompt] * len(texts), replies, columns, words)


def _messages(record: Record, images: list[Any]) -> list[dict[str, Any]]:
    """The turns of the data, nothing added; contents are texts, or parts with the images where there are media."""
    turns = build_messages(replace(record, options=()), template="raw")
    if not record.has_media:
        return [{**turn, "content": "".join(part["text"] for part in turn["content"])} for turn in turns]
    decoded = iter(images)
    return [
        {
            **turn,
            "content": [
                _with_image(part, next(decoded, None)) if part["type"] == "image" else part for part in turn["content"]
            ],
        }
        for turn in turns
    ]


def _with_image(part: dict[str, Any], image: Any) -> dict[str, Any]:
    return part if image is None else {**part, "image": image}
