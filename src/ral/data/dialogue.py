"""Reads dialogues in every common chat format, with their media at marks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ral.data.record import IMAGE_MARK, VIDEO_MARK, Turn
from ral.data.values import media_in, reply_parts, short, written_out

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
#: Types of parts, by what they hold: TRL's and Qwen's, OpenAI's chat and responses, Anthropic's.
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"}
_MARKS = {"image": IMAGE_MARK, "video": VIDEO_MARK}
_ANY_MARK = re.compile(f"{re.escape(IMAGE_MARK)}|{re.escape(VIDEO_MARK)}")


@dataclass(frozen=True)
class Dialogue:
    """A dialogue that ends in a question, and in the reply to it where there is one.

    images, videos: one for every mark in `history` and `problem`, in order: the medium that stands there in the dialogue,
    None for one that stands in a column of the row.
    conversational: the source holds messages (`role`, `content`), no text and no turns of another form.
    """

    system: str | None
    history: tuple[Turn, ...]
    problem: str
    trace: str | None = None
    reply: str | None = None
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    conversational: bool = False


def read_dialogue(turns: Any) -> Dialogue:
    """The dialogue in a text (one question), or in a list of `{"role", "content"}` or `{"from", "value"}`.

    System turns come first, then user and assistant in turn. Raises ValueError, saying what was expected.
    """
    turns = written_out(turns)
    is_text = isinstance(turns, str)
    if is_text:
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"a text or a list of messages, found {short(turns)}")
    media: dict[str, list[Any]] = {"image": [], "video": []}
    said = [(_role(turn), turn) for turn in turns]
    leading = next((n for n, (role, _) in enumerate(said) if role != "system"), len(said))
    system = [_text(turn, {"image": [], "video": []}) for _, turn in said[:leading]]
    if any(_ANY_MARK.search(text) for text in system):
        raise ValueError("a system turn of text alone, found a medium in it")
    roles = [role for role, _ in said[leading:]]
    if not roles or any(role != ("user", "assistant")[n % 2] for n, role in enumerate(roles)):
        raise ValueError(f"turns of user and assistant that take turns, a user's first, found {short(roles)}")
    trace = reply = None
    asked = said[leading:]
    if roles[-1] == "assistant":
        last = asked.pop()[1]
        shown: dict[str, list[Any]] = {"image": [], "video": []}
        given = _text(last, shown)
        if any(shown.values()):
            raise ValueError("a last reply of text alone, found a medium in it")
        trace, reply = reply_parts(given)
        trace = trace if last.get("reasoning_content") is None else str(last["reasoning_content"])
    contents = [_text(turn, media) for _, turn in asked]
    history = tuple(Turn(role, text) for (role, _), text in zip(asked[:-1], contents, strict=False) if role != "system")
    if not contents[-1].strip():
        raise ValueError("a question in the last user turn, found nothing")
    images, videos = (tuple(media[kind]) for kind in ("image", "video"))
    conversational = not is_text and all("role" in turn for turn in turns)
    return Dialogue("\n".join(system) or None, history, contents[-1], trace, reply, images, videos, conversational)


def _role(turn: dict[str, Any]) -> Literal["system", "user", "assistant"]:
    name = turn.get("role") or turn.get("from")
    if name not in _ROLES:
        raise ValueError(f"a turn of {', '.join(_ROLES)}, found {short(name)}")
    for key, value in turn.items():
        if key in ("tool_calls", "function_call", "audio") and value:
            raise ValueError(f"turns of text, images and videos, found {key!r} in one")
        if key not in ("content", "value") and media_in(value):
            raise ValueError(f"media in the turn's content or in a column of the row, found {key!r} in a turn")
    return _ROLES[name]


def _text(turn: dict[str, Any], media: dict[str, list[Any]]) -> str:
    """The text of a turn with marks for its media, which are added to `media`."""
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if isinstance(content, str):
        return _with_blanks(content, media)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list | tuple) or not all(isinstance(part, dict | str) for part in content):
        raise ValueError(f"message content as text or parts, found {short(content)}")
    return "".join(_with_blanks(p, media) if isinstance(p, str) else _part(p, media) for p in content)


def _with_blanks(text: str, media: dict[str, list[Any]]) -> str:
    """A text whose marks stand for media of the row's columns."""
    for mark in _ANY_MARK.findall(text):
        media["image" if mark == IMAGE_MARK else "video"].append(None)
    return text


def _part(part: dict[str, Any], media: dict[str, list[Any]]) -> str:
    """One part of a content. A table gives every part every name, so that empty ones mean nothing."""
    held = {name: value for name, value in part.items() if value is not None}
    kind = held.pop("type", None)
    if kind is None:
        kind = next((name for name in ("text", *_MEDIA_PARTS) if name in held), None)
    if kind in _TEXT_PARTS:
        text = held.pop("text", None)
        if not isinstance(text, str):
            raise ValueError(f"a part of type {kind!r} with its text, found {short(part)}")
        if any(media_in(value) for value in held.values()):
            raise ValueError(f"a part that is a text or a medium, found both in {short(part)}")
        return _with_blanks(text, media)
    if kind not in _MEDIA_PARTS:
        raise ValueError(f"parts of type {', '.join((*_TEXT_PARTS, *_MEDIA_PARTS))}, found {short(kind)}")
    column = _MEDIA_PARTS[kind]
    media[column].append(_medium(held, kind, column))
    return _MARKS[column]


def _medium(held: dict[str, Any], kind: str, column: str) -> Any:
    """The content of a media part; None if it only marks the place."""
    if "bytes" in held:
        held.pop("path", None)  # where the bytes were read from
    names = dict.fromkeys((kind, column, f"{column}_url", "url", "path", "bytes", "base64", "source"))
    given = [held.pop(name) for name in names if name in held]
    if len(given) > 1 or media_in(list(held.values())) or held.get("file_id"):
        raise ValueError(
            f"one {column} in a part, as its path, bytes or data URI, found {short(sorted(held) or given)}"
        )
    value = given[0] if given else None
    if isinstance(value, dict) and value.get("type") == "base64":  # Anthropic's
        return f"data:{value.get('media_type')};base64,{value.get('data')}"
    return value
