"""Chat templates: finds a checkpoint's template, applies it, and tells which tokens it adds for the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from ral.errors import ConfigError, DataError

Messages = Sequence[Mapping[str, Any]]

#: The variable by which templates of models that can do both are told whether to think.
_SWITCH = "enable_thinking"
_OPENED = re.compile(r"<think>\s*\Z")
_QUESTION = {"role": "user", "content": [{"type": "text", "text": "?"}]}


def chat_template(processor: Any) -> str | None:
    """The template of a processor or tokenizer: its own, or its tokenizer's; of several, the one called default."""
    for holder in (processor, getattr(processor, "tokenizer", None)):
        template = getattr(holder, "chat_template", None)
        if template := template.get("default") if isinstance(template, Mapping) else template:
            return template
    return None


def render(processor: Any, messages: Messages, think: bool, answering: bool = True) -> str:
    """The conversation as text, ending where the model is to answer unless it is not `answering`.

    A tokenizer without a template belongs to a base model, which knows no turns: it gets their texts. A template that can be
    told whether to think is told so.

    Raises ConfigError for a processor without a template, and for one that opens the thinking although `think` is false;
    DataError for turns that the template refuses.
    """
    is_tokenizer = not hasattr(processor, "tokenizer")
    template = chat_template(processor)
    if is_tokenizer:
        messages = [{**turn, "content": "".join(part["text"] for part in turn["content"])} for turn in messages]
        if template is None:
            return "\n\n".join(turn["content"] for turn in messages)
    if template is None:
        raise ConfigError(
            "the model's processor has no chat template; put the one it was trained with into its folder as chat_template.jinja"
        )
    switch = {_SWITCH: think} if _SWITCH in template else {}
    try:
        text = processor.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=answering, **switch
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in messages)
        raise DataError(f"the model's chat template refuses the turns {roles}: {error}") from error
    if answering and not think and _OPENED.search(text):
        raise ConfigError(
            "think=False asks for an answer without thinking, but the model's chat template opens <think>, and has no "
            f"{_SWITCH} to tell it otherwise; set think to true, or choose a model that can answer directly"
        )
    return text


def think_opening(processor: Any, think: bool = True) -> str:
    """The part of the model's turn that the prompt already contains: "<think>" and what follows it, or "".

    Raises ConfigError as `render` does.
    """
    opened = _OPENED.search(render(processor, [_QUESTION], think))
    return opened[0] if opened else ""


def opens_think(processor: Any, think: bool = True) -> bool:
    """Whether the prompt ends in an open `<think>`, so that a completion starts inside of the thinking."""
    return bool(think_opening(processor, think))


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Whether a rendered `text` still needs the special tokens that its tokenizer adds, as `apply_chat_template` decides it.

    A tokenizer's template writes all of them; a processor's may leave the first to the tokenizer.
    """
    if chat_template(processor) is None:
        return True
    tokenizer = getattr(processor, "tokenizer", None)
    return tokenizer is not None and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def turn_end(processor: Any) -> int | None:
    """The token that the template puts after a model's turn; None without such a token or without a template."""
    if chat_template(processor) is None:
        return None
    said = "unmistakable"
    turns = [_QUESTION, {"role": "assistant", "content": [{"type": "text", "text": said}]}]
    try:
        text = render(processor, turns, think=True, answering=False)
    except DataError:
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    behind = tokenizer.encode(text.rpartition(said)[2].lstrip(), add_special_tokens=False)[:1]
    known = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    return next((token for token in behind if token in known), None)
