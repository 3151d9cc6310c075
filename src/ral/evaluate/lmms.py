"""Turns lmms-eval's requests into records for the plug-in `lmms_model.py`. Works without lmms-eval.

The package finds the plug-in by the entry point `ral` of the group `lmms_eval.models`; see docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ral.data.record import IMAGE_MARK, VIDEO_MARK, ProblemType, Record
from ral.errors import DataError
from ral.evaluate.settings import EvalSettings


def manifest() -> Any:
    """The `ModelManifest` that registers the model type `ral` with lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="ral", chat_class_path="ral.evaluate.lmms_model.RAL")


def record_of(
    messages: Sequence[Mapping[str, Any]], id: str, problem_type: ProblemType = "free-form", origin: str = ""
) -> Record:
    """The record of one request in lmms-eval's chat protocol.

    Args:
        messages: turns of `{"role", "content"}`; the content is a list of `{"type": "text", "text"}`,
            `{"type": "image", "url": PIL image or path}` and `{"type": "video", "url": path}`.
        problem_type: which kind of answer the prompt asks for.

    Media stand where they stand in the content, or at the marks that the benchmark's own text has for them. Raises
    `DataError` for a dialogue and for media that the model cannot be shown.
    """
    origin = origin or id
    said = [message for message in messages if message["role"] == "system"]
    asked = [message for message in messages if message["role"] == "user"]
    if len(asked) != 1 or len(said) + 1 != len(messages):
        raise DataError(f"{origin}: expected one user turn, found {[message['role'] for message in messages]}")
    parts = [part for message in (*said, *asked) for part in message["content"]]
    own_marks = any(IMAGE_MARK in part["text"] or VIDEO_MARK in part["text"] for part in parts if _kind(part) == "text")
    problem, images, videos = "", list[Path | Image.Image](), list[Path]()
    for part in parts:
        match _kind(part):
            case "text":
                problem += part["text"]
            case "image":
                images.append(part["url"] if isinstance(part["url"], Image.Image) else _file(part["url"], origin))
                problem += "" if own_marks else IMAGE_MARK
            case "video":
                if part.get("start_time") is not None or part.get("end_time") is not None:
                    raise DataError(f"{origin}: asks about a part of a video; cut the video to it")
                videos.append(_file(part["url"], origin))
                problem += "" if own_marks else VIDEO_MARK
            case other:
                raise DataError(f"{origin}: has {other}, which the model cannot be shown")
    return Record(
        id=id, problem=problem, solution="", problem_type=problem_type, images=tuple(images), videos=tuple(videos),
        origin=origin,
    )  # fmt: skip


def token_limit(settings: EvalSettings, generation: Mapping[str, Any]) -> int:
    """Tokens of an answer: as many as in training, which the thinking takes, or what the task asks for if that is more.

    Raises `DataError` where the task wants answers to be drawn: they are the most likely ones here.
    """
    if generation.get("do_sample") and float(generation.get("temperature") or 0) > 0:
        raise DataError("the task asks for sampled answers; give --gen_kwargs temperature=0,do_sample=False")
    return max(settings.max_completion_length, int(generation.get("max_new_tokens") or 0))


def _kind(part: Mapping[str, Any]) -> str:
    return str(part["type"])


def _file(place: Any, origin: str) -> Path:
    if not isinstance(place, str | Path):
        raise DataError(f"{origin}: has a medium that is a {type(place).__name__}; expected a file or a PIL image")
    return Path(place)
