"""Normalises text as a reader sees it: characters, invisible characters, LaTeX, markdown. Every function takes linear time."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# ---------------------------------------------------------------------------------------------- characters

_SIGNS = {
    **dict.fromkeys("“”„«»″", '"'),
    **dict.fromkeys("‘’‚′´", "'"),
    **dict.fromkeys("−–—‐‑‒―﹣", "-"),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("「『【〈《〔", "["),
    **dict.fromkeys("」』】〉》〕", "]"),
    **dict.fromkeys("。．", "."),
    **dict.fromkeys("、،٬", ","),
    "٫": ".", "؛": ";", "؟": "?", "٪": "%", "∶": ":", "º": "°",
}  # fmt: skip
_SUPERSCRIPTS = re.compile(r"[⁰¹²³⁴-⁹⁺⁻]+")
_VULGAR = re.compile(r"(\d?)([¼-¾⅐-⅞↉])")
_LATIN_ACCENT = re.compile(r"([a-z])[\u0300-\u036f]+", re.IGNORECASE)


class _Characters(dict[int, str]):
    """The reading of each character, computed on demand."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        category = unicodedata.category(sign)
        if sign in _SIGNS:
            read = _SIGNS[sign]
        elif category == "Nd":
            read = str(unicodedata.decimal(sign))  # the digits of every script
        elif sign.isspace():
            read = sign
        elif category in ("Cf", "Cc", "Cs") or 0xFE00 <= code <= 0xFE0F:
            read = ""  # zero-width and control characters, halves of pairs, variation selectors
        else:
            read = sign
        self[code] = read
        return read


_CHARACTERS = _Characters()


def readable(text: str) -> str:
    """`text` as it looks: plain quotes, minus and digits, nothing invisible, NFKC; but 10² is 10^2, and 1½ is 1 1/2."""
    text = _SUPERSCRIPTS.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text.replace("º", "°"))
    text = _VULGAR.sub(lambda run: f"{run[1]} " * bool(run[1]) + unicodedata.normalize("NFKC", run[2]), text)
    return unicodedata.normalize("NFKC", text).translate(_CHARACTERS)


def typed(text: str) -> str:
    """`text` letter by letter, but for how it is encoded and for quotes or markup around the whole."""
    text = " ".join(readable(text).split())
    for sign in ('"', "'", "`", "**"):
        if len(text) > 2 * len(sign) and text.startswith(sign) and text.endswith(sign):
            return text[len(sign) : -len(sign)]
    return text


# -------------------------------------------------------------------------------------- LaTeX and markdown

_WRAPPER = re.compile(
    r"\\(?:boxed|fbox|mbox|text(?:bf|it|rm|tt|sf|up)?|math(?:rm|bf|it|sf|tt|bb|cal)|bf|bm|boldsymbol|emph|underline"
    r"|operatorname|color|displaystyle)\s*\{|[{}]"
)
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|(?<!\\)~(?=[^\s\d])")
_PERCENT = re.compile(r"\\([%$#&_])")
_COMMANDS = {
    r"\circ": "°", r"\degree": "°", r"\times": "×", r"\cdot": "×", r"\pm": "±", r"\approx": "≈", r"\sim": "~",
    r"\leq": "≤", r"\le": "≤", r"\geq": "≥", r"\ge": "≥", r"\neq": "≠", r"\ne": "≠", r"\lt": "<", r"\gt": ">",
    r"\left": "", r"\right": "", r"\displaystyle": "",
}  # fmt: skip
_COMMAND = re.compile(r"\^?\{?(\\(?:circ|degree))(?![a-zA-Z])\}?|(\\[a-z]+)(?![a-zA-Z])")
_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*(?:\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}|(\d)\s*(\d))")
_POWER = re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}")
_DELIMITERS = re.compile(r"\\[()\[\]]|\$\$")
_DOLLARS = re.compile(r"\$([^$]*)\$(?!\d)")
_EMPHASIS = re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])")
_TAG = re.compile(r"</?(?:b|i|u|p|em|strong|code|span|div|br|sub|center)\s*/?>", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*•>]|#{1,6})\s+(?=[^\d\s])")
_EMOJI = re.compile(r"^[\s\u2600-\u27bf\u2b50\U0001f000-\U0001faff]+|[\s\u2600-\u27bf\u2b50\U0001f000-\U0001faff]+$")


@lru_cache(maxsize=64)  # an answer is read again for each option and each way of reading it
def clean(text: str) -> str:
    """`text` as it would be read aloud: `readable`, one space, without LaTeX and markdown around words and numbers."""
    text = readable(text)
    if any(sign in text for sign in "\\${"):
        text = _without_latex(text)
    text = _TAG.sub("", text.replace("**", "").replace("__", "").replace("`", ""))
    text = _BULLET.sub("", _EMPHASIS.sub(r"\1", text))
    text = " ".join(text.split()).strip("*\"' ")
    return _EMOJI.sub("", text) or text


def _without_latex(text: str) -> str:
    text = _DELIMITERS.sub("", text).replace("{,}", ",")
    text = _FRACTION.sub(_plain_fraction, text)
    text = _without_wrappers(_POWER.sub(r"^\1", text))
    text = _SPACES.sub(" ", _DOLLARS.sub(r"\1", text))
    text = _COMMAND.sub(lambda found: _COMMANDS.get(found[1] or found[2], found[0]), text)
    return _PERCENT.sub(r"\1", text)


def _plain_fraction(found: re.Match[str]) -> str:
    """3/4; 1 3/4 where a whole number stands before it."""
    return f"{found[1]} " * bool(found[1]) + f"{found[2] or found[4]}/{found[3] or found[5]}"


def _without_wrappers(text: str) -> str:
    """`text` without `\\boxed{…}`, `\\text{…}` and the like around what they hold, however deep they nest."""
    kept: list[str] = []
    wraps: list[bool] = []
    start = 0
    for sign in _WRAPPER.finditer(text):
        kept.append(text[start : sign.start()])
        start = sign.end()
        if sign[0] == "}":
            if not (wraps and wraps.pop()):
                kept.append("}")
            continue
        wraps.append(sign[0] != "{")
        if not wraps[-1]:
            kept.append("{")
    return "".join(kept) + text[start:]


# ------------------------------------------------------------------------------------------------ equality

_ABBREVIATION = re.compile(r"\b(?:[^\W\d_]\.){2,}(?!\w)|\b(?:[^\W\d_]\.)+[^\W\d_]\b(?!\.?\w)")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_])|(?<=[^\W\d_])-(?=[^\W\d_]{2})")
_OUTER = " .,;:!?\"'()[]"


@lru_cache(maxsize=64)
def plain(text: str) -> str:
    """The form in which equal texts agree: without case, accents of Latin letters, outer punctuation and leading article.

    Signs that change a value stay: "-5", ".5", "5%", "C++"; hyphens between words do not.
    """
    text = unicodedata.normalize("NFD", clean(text).casefold())
    text = unicodedata.normalize("NFC", _LATIN_ACCENT.sub(r"\1", text))
    text = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), text)
    text = _HYPHEN.sub(" ", text).rstrip(_OUTER)
    bare = text.lstrip(_OUTER)
    if bare[:1].isdecimal() and text.endswith("." + bare):
        bare = "." + bare
    return re.sub(r"^(?:a|an|the) ", "", bare)


def same_text(a: str, b: str) -> bool:
    """Whether two short texts say the same, up to case, markup, outer punctuation and a leading article."""
    return plain(a) == plain(b)
