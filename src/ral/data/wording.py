"""The text around a problem in its prompt: the wordings of this package and of a recipe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from string import Formatter
from typing import Literal, Protocol

from ral.data.record import IMAGE_MARK, VIDEO_MARK, ProblemType, Record
from ral.errors import ConfigError

Template = Literal["paper", "plain", "raw"]

#: What a template of one's own is filled with.
PLACEHOLDERS = ("problem", "options", "hint")
MARK = re.compile(f"({re.escape(IMAGE_MARK)}|{re.escape(VIDEO_MARK)})")

_HINT: dict[ProblemType, str] = {
    "multiple choice": "a single option letter (for example A)",
    "numerical": "a number (for example 42 or 3.14)",
    "OCR": "the transcribed text",
    "free-form": "a short text",
    "regression": "a number (for example 42 or 3.14)",
    "math": "a number or a formula in LaTeX",
    "box": "a box [x0, y0, x1, y1]",
}
_CARE = "Think the question through first, look as closely as you need, and check your reasoning. "
_THINK = _CARE + "Write your thinking between <think> and </think>, then the answer between <answer> and </answer>. "
_THINK_ON = _CARE + "End your thinking with </think>, then write the answer between <answer> and </answer>. "
_BODY = "Inside the <answer> tags give only {hint}."
_DIRECT = "Answer directly, without explanation and without tags. Give only {hint}."


class WordingSettings(Protocol):
    """The settings that a wording depends on, of `ral.data.settings.PromptSettings`."""

    @property
    def think(self) -> bool: ...
    @property
    def template(self) -> Template: ...
    @property
    def prompt_template(self) -> str | None: ...


def question(record: Record, settings: WordingSettings, hint: str | None = None, think_opened: bool = False) -> str:
    """The text of the record's question, with the marks of its media, as it is asked.

    `raw` adds nothing: the options follow the problem, one a line. The other wordings, and a `prompt_template` that does not
    say where options stand, put the line "Options:" before them. `hint` is the form of the answer, in words, where it is not that
    of the problem type; `think_opened` says that the prompt will end in `<think>`.
    """
    options = "\n".join(record.options)
    if settings.template == "raw":
        return "\n".join(filter(None, (record.problem, options)))
    hint, asked = hint or _HINT[record.problem_type], record.problem
    own = settings.prompt_template
    if options and "options" not in _placeholders(own or ""):
        asked += f"\nOptions:\n{options}"
    if own is not None:
        return own.format(problem=asked, options=options, hint=hint)
    if settings.template == "plain":
        return asked + (" think" if settings.think else " answer")
    wording = (_THINK_ON if think_opened else _THINK) + _BODY if settings.think else _DIRECT
    return f"{asked}\n\n{wording.format(hint=hint)}"


def read_template(given: str, folder: Path | None = None) -> str:
    """The text of a `prompt_template`: itself, or what the file of that name holds.

    What holds no brace is the name of a file, which starts from `folder` (the recipe's), or from the working directory. Line
    breaks at the end, which files and YAML blocks have, are no part of it.

    Raises ConfigError for a file that cannot be read, an unknown placeholder, and unless `{problem}` stands in it once.
    """
    if "{" in given or "}" in given:
        _check(given, "prompt_template")
        return given.rstrip("\n")
    path = (folder or Path()) / given
    if not os.path.isfile(path):  # of a long text it says False, where Path.is_file raises
        raise ConfigError(
            f"prompt_template={given[:60]!r} holds no {{problem}}, and there is no file of this name ({str(path)[:200]}); write "
            "where the problem stands, or the path of a text file that does"
        )
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except ValueError as error:
        raise ConfigError(f"prompt_template: {path} is not a text file in UTF-8; save it as one") from error
    _check(text, f"prompt_template: {path}")
    return text


def refuse_marks(text: str, where: str) -> None:
    """Raise ConfigError for a mark of a medium in a text that is the same for all records."""
    if found := MARK.search(text):
        raise ConfigError(f"{where} holds {found[0]}, but where media stand is said in the data; leave the mark out")


def _check(template: str, where: str) -> None:
    found = _placeholders(template, where)
    for name in found:
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ConfigError(
                f"{where}: {{{name}}} is not known; there are {known}. Write a brace of the text itself twice: {{{{ or }}}}"
            )
    if found.count("problem") != 1:
        raise ConfigError(
            f"{where}: expected {{problem}} once, where the problem stands, found it {found.count('problem')} times"
        )
    refuse_marks(template, where)


def _placeholders(template: str, where: str = "prompt_template") -> list[str]:
    """What stands in braces, as it is written."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; write a brace of the text itself twice: {{{{ or }}}}") from error
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        for _, name, form, conversion in parts
        if name is not None
    ]
