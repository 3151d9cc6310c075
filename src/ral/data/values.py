"""Decodes values of table cells: lists written as text, media as bytes, data URIs and base64."""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import io
import json
import math
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

import av
from PIL import Image

from ral.data.media_suffixes import IMAGE_SUFFIXES, OTHER_SUFFIXES, VIDEO_SUFFIXES
from ral.data.video import FORMATS as VIDEO_FORMATS
from ral.files import atomic_write_bytes

#: How base64 of a JPEG, PNG, GIF, WEBP (RIFF) and TIFF begins.
_BASE64_IMAGE = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]++=*+\s*+")


def short(value: Any) -> str:
    """`value` as an error message shows it."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing."""
    return value is None or (isinstance(value, str | list | tuple) and len(value) == 0)


def is_number(value: Any) -> bool:
    """A finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def written_out(value: Any) -> Any:
    """A list or object that stands as text, in JSON or as Python prints it; anything else as it is."""
    if not isinstance(value, str) or (value.strip()[:1], value.strip()[-1:]) not in (("[", "]"), ("{", "}")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def bytes_of(text: str) -> bytes | None:
    """The bytes of a data URI or of an image in base64; None for other text. Raises ValueError for a broken one."""
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        if not comma:
            raise ValueError("a data URI without a comma")
        return _decoded(body) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    if text.startswith(_BASE64_IMAGE) and len(text) >= 40 and _BASE64.fullmatch(text):
        return _decoded(text)
    return None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"base64 that is broken ({error})") from error


def spilled(content: bytes) -> Path:
    """A file that holds these bytes of a video, as videos are decoded from files: in `$RAL_CACHE` or `~/.cache/ral`.

    Called by its contents, so that it is written once. Raises ValueError for what is no video.
    """
    try:
        with av.open(io.BytesIO(content), options={"format_whitelist": VIDEO_FORMATS}) as container:
            if not container.streams.video:
                raise ValueError("no video stream")
            kind = container.format.name.partition(",")[0]
    except av.error.FFmpegError as error:
        raise ValueError(str(error)) from error
    folder = Path(os.environ.get("RAL_CACHE", Path.home() / ".cache" / "ral")) / "media"
    suffix = {"mov": ".mp4", "matroska": ".mkv", "mpegts": ".ts"}.get(kind, f".{kind}")
    path = folder / (hashlib.sha256(content).hexdigest()[:32] + suffix)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, content)
    return path


def media_in(value: Any) -> list[Any]:
    """The media that a value seems to hold: images, bytes, data URIs, and paths that are called like media."""
    if isinstance(value, Image.Image | bytes):
        return [value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        return [value] if _names_medium(value) else []
    if isinstance(value, list | tuple):
        return [medium for item in value for medium in media_in(item)]
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return [value["bytes"]]
    return media_in(list(value.values())) if isinstance(value, dict) else []


def _names_medium(text: str) -> bool:
    if text[:5].lower() == "data:":
        return True
    if len(text) > 4096 or "\n" in text:
        return text.startswith(_BASE64_IMAGE) and _BASE64.fullmatch(text) is not None
    suffix = PurePosixPath(text).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES or suffix in OTHER_SUFFIXES


def unencodable(value: Any) -> bool:
    """Whether a value holds text, at any depth, that is no Unicode: half of a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and _SURROGATE.search(value) is not None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        value = [*value, *value.values()]
    elif not isinstance(value, list | tuple):
        return False
    for item in value:  # a loop, as every row of every file passes here
        if isinstance(item, str):
            if not item.isascii() and _SURROGATE.search(item):
                return True
        elif (isinstance(item, dict | list | tuple) or hasattr(item, "tolist")) and unencodable(item):
            return True
    return False


def reply_parts(text: str) -> tuple[str | None, str]:
    """(thinking, answer) of a worked reply: `<think>…</think><answer>…</answer>`, each of which may be missing."""
    thought, rest = None, text.strip()
    if rest.startswith("<think>") and "</think>" in rest:
        thought, _, rest = rest.removeprefix("<think>").partition("</think>")
    if rest.count("<answer>") == rest.count("</answer>") == 1 and rest.index("<answer>") < rest.index("</answer>"):
        rest = rest[rest.index("<answer>") + len("<answer>") : rest.index("</answer>")]
    return (thought.strip() if thought is not None else None), rest.strip()


def untagged(text: str, tag: str) -> str:
    """`text` without white space around it, and without `<tag>…</tag>` around the whole."""
    text = text.strip()
    start, end = f"<{tag}>", f"</{tag}>"
    if text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end):
        return text[len(start) : -len(end)].strip()
    return text
