"""Finds the answer in a completion. Both modes read the text once.

A completion of a thinking model answers in `<answer>…</answer>`; `strict` takes the last complete one that stands outside
the thinking, `compat` the first one anywhere, as Video-R1 does. A completion without thinking is the answer itself.
"""

from __future__ import annotations

import re
from typing import Literal

Mode = Literal["strict", "compat"]

_OPEN, _CLOSE = "<answer>", "</answer>"
_ANSWER_TAG = re.compile(r"</?answer>")
_THINK_TAG = re.compile(r"</?think>")


def extract_answer(text: str, mode: Mode = "strict", think: bool = True) -> str | None:
    """The answer that `text` gives, without tags and outer white space; None if it gives none.

    `think=True` expects `<answer>…</answer>`: `compat` takes the first (Video-R1), `strict` the last complete
    one outside `<think>…</think>`. `think=False` expects the bare answer, and still looks into tags where
    there are some.
    """
    if mode == "compat":
        body, said = first_answer(text), text
    else:
        said = outside_thinking(text)
        body = _last_answer(said)
    if body is None:
        body = "" if think else said
    return body.strip() or None


def first_answer(text: str) -> str | None:
    """The body of the first pair of tags in `text`; None without one."""
    start = text.find(_OPEN)
    stop = text.find(_CLOSE, start + len(_OPEN)) if start >= 0 else -1
    return text[start + len(_OPEN) : stop] if stop >= 0 else None


def _last_answer(text: str) -> str | None:
    """The body between the last pair of tags that have no tag between them."""
    body, start = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if tag[0] == _OPEN:
            start = tag.end()
        elif start is not None:
            body, start = text[start : tag.start()], None
    return body


def outside_thinking(text: str) -> str:
    """`text` without its thinking: balanced blocks, an opening that never closes, and what leads to a stray close."""
    kept: list[str] = []
    depth, start = 0, 0
    for tag in _THINK_TAG.finditer(text):
        if depth == 0:
            kept.append(text[start : tag.start()])
        if tag[0] == "<think>":
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept.clear()  # the prompt had opened the thinking
        start = tag.end()
    return "".join(kept) + (text[start:] if depth == 0 else "")
