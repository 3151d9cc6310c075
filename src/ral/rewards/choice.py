"""Reads which option an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ral.rewards.answer_phrases import announced, denies, last_claim, several, without_leads
from ral.rewards.numbers import in_common_unit, parse_number, relative_error
from ral.rewards.text import clean, plain, same_text

_LABELLED = re.compile(r"\(?([A-Z])[.):]\)?\s*(.*)", re.DOTALL)
_LABEL_LINE = re.compile(r"^([^\w\n]*[A-Z][^\w\n]*)\n\s*")
_BARE = re.compile(r"[(\[<{\"'\s]*([A-Za-z])[)\]>}\"'.:;,!?\s]*")
_STATED = re.compile(
    r"[(\[<\s]*(?P<letter>[A-Z])(?:(?P<mark>[)\]>]+[.:,;-]?|[.:,;]+(?=\s|[^\W\d_])|\s[-|](?=\s))|(?=[\s\u4e00-\u9fff]))\s*(?P<rest>\S.*)",
    re.DOTALL,
)
_AFFIRMED = re.compile(
    r"(?i)(?:(?:is|was|would be|must be)\s)?(?:the\s)?(?:(?:correct|right|best|true|final)\s?)?(?:answer|option|choice|one)?[\s.!]*"
    r"|(?:选项|项)?(?:是|为)?(?:正确|对)?的?(?:答案)?[\s.!]*"
)
_REASON = re.compile(r"(?:because|since|as|due to|given|for)\b")
_REJECTED = re.compile(
    r"(?i)[,;(]?\s*(?:and\s)?(?:not|rather than|instead of)\s+(?:option\s|choice\s)?\(?[A-Z](?!\w)[^.;]*"
)
_ENDING = re.compile(
    r"(?:\b(?:is|be|option|choice|answer|choose|pick|select|therefore|thus|so|hence)|[:→]|->|=>)\s*[(\[]?([A-Z])[)\]]?[.!]*$"
)
#: A letter that stands alone: in brackets, a capital that is no article and no "I", or a small one with a label's sign.
_LETTERS = re.compile(
    r"[(\[]([A-Za-z])[)\]]|(?<![\w'])(A(?!\s[a-z])|[B-HJ-Z]|I(?=[.):,]|$))(?![\w'])|(?<!\w)([b-z])(?=[.)](?:\s|$))"
)
_WORDS = re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*%?|[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


def option_texts(options: Sequence[str]) -> dict[str, str]:
    """Letter → text of each option: the labels they carry ("A. red", "(A) red"), else by position."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    labelled = [_LABELLED.fullmatch(clean(option)) for option in options]
    if options and all(m and m[1] == letter for m, letter in zip(labelled, letters, strict=True)):
        return {m[1]: m[2] for m in labelled if m}
    return dict(zip(letters, options, strict=True))


def parse_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter that `text` chooses: "B", "b", "(B)", "B.", "B. red", "The answer is B", or the option's own text.

    A letter goes before an option of the same text. Of a corrected answer the last claim counts. None for a letter
    outside the options, for several letters, for a letter with the text of another option, and for one that is denied.
    """
    texts = option_texts(options)
    said = clean(_LABEL_LINE.sub(r"\1: ", text))
    if letter := _whole(said, texts, options):
        return letter
    said = last_claim(said)
    claim = announced(said) or said
    for candidate in (said, claim, _REJECTED.sub("", claim)):
        bare = without_leads(candidate)
        if letter := _whole(bare, texts, options) or _stated(bare, texts):
            return letter
    ending = _ENDING.search(said[-40:])
    if ending and letters_in(said) == {ending[1]} and not (denies(said) or several(said)):
        return _known(ending[1], texts)
    return None


def letters_in(text: str) -> set[str]:
    """The option letters that a clean `text` mentions, as capitals."""
    return {(found[1] or found[2] or found[3]).upper() for found in _LETTERS.finditer(text)}


def _known(letter: str, texts: Mapping[str, str]) -> str | None:
    return letter if not texts or letter in texts else None


def _whole(text: str, texts: Mapping[str, str], options: Sequence[str]) -> str | None:
    """The letter, where `text` is nothing but a letter or an option."""
    if (match := _BARE.fullmatch(text)) and _known(match[1].upper(), texts):
        return match[1].upper()
    named = {letter for letter, option in texts.items() if same_text(text, option)}
    named |= {letter for letter, option in zip(texts, options, strict=True) if same_text(text, option)}
    if not named and parse_number(text) is not None:
        pairs = {letter: in_common_unit(text, option) for letter, option in texts.items()}
        named = {letter for letter, pair in pairs.items() if pair and relative_error(*pair) <= 1e-9}
    return named.pop() if len(named) == 1 else None


def _stated(text: str, texts: Mapping[str, str]) -> str | None:
    """The letter at the start of `text`, where what follows leaves it standing."""
    match = _STATED.fullmatch(text)
    if match is None or _known(match["letter"], texts) is None:
        return None
    return match["letter"] if _stands(match["letter"], match["rest"], bool(match["mark"]), texts) else None


def _stands(letter: str, rest: str, marked: bool, texts: Mapping[str, str]) -> bool:
    """Whether `rest` names the letter's own option, affirms it, or explains it; `marked`: a sign stands between them.

    An explanation may speak of other options, but not of other letters; any other text may do neither, and deny nothing.
    """
    claimed = {other for other, option in texts.items() if same_text(rest, option)}
    if claimed:
        return letter in claimed
    if _AFFIRMED.fullmatch(rest):
        return True
    own, said = _words(texts.get(letter, "")), _words(rest)
    named = bool(own.strip()) and said.startswith(own)
    more = said[len(own) - 1 :] if named else said
    if letters_in(rest) - letters_in(texts.get(letter, "")) - {letter}:
        return False
    affirmed = _AFFIRMED.match(rest)
    if any(
        _REASON.match(why.strip()) and len(why.split()) > 1 for why in (more, rest[affirmed.end() if affirmed else 0 :])
    ):
        return True
    others = {_words(option) for other, option in texts.items() if other != letter} - {own, " ", "  "}
    return (named or marked) and not (denies(more) or any(other in more for other in others))


def _words(text: str) -> str:
    """The words of `text`, a space around each: `" red "` is in `_words("a red ball")`."""
    return f" {' '.join(_WORDS.findall(plain(text)))} "
