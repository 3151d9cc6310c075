"""Reads the number of an answer, in digits or words, with its magnitude and unit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ral.rewards.answer_phrases import denies, last_claim, several, without_leads
from ral.rewards.text import clean
from ral.rewards.units import MONEY, unit_of


@dataclass(frozen=True)
class Number:
    """A finite `value` with the `unit` written beside it ("" if none, "%" for per cent)."""

    value: float
    unit: str = ""


# ------------------------------------------------------------------------------------------------- words

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_CARDINALS = {word: float(value) for value, word in enumerate(_SMALL.split())}
_CARDINALS |= {word: 10.0 * place for place, word in enumerate(_TENS.split(), start=2)}
_TO_TWELFTH = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_ORDINALS = {word: float(value) for value, word in enumerate(_TO_TWELFTH.split(), start=1)}
_PARTS = {word: int(value) for word, value in _ORDINALS.items() if value > 2} | {"half": 2, "quarter": 4}
_PARTS |= {f"{word}s": part for word, part in _PARTS.items()}
_PARTS |= {"halves": 2, "hundredths": 100, "thousandths": 1000}
_MAGNITUDES = {
    "hundred": 1e2, "thousand": 1e3, "million": 1e6, "millions": 1e6, "mn": 1e6, "mln": 1e6, "mio": 1e6, "billion": 1e9, "billions": 1e9, "bn": 1e9, "bln": 1e9, "mrd": 1e9,
    "trillion": 1e12, "dozen": 12.0, "lakh": 1e5, "crore": 1e7, "тыс": 1e3, "тысяч": 1e3, "тысячи": 1e3, "млн": 1e6,
    "миллион": 1e6, "миллиона": 1e6, "миллионов": 1e6, "млрд": 1e9, "миллиардов": 1e9, "ألف": 1e3, "آلاف": 1e3, "مليون": 1e6,
    "مليار": 1e9,
}  # fmt: skip
_SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "mn": 1e6, "B": 1e9, "bn": 1e9, "T": 1e12}
_SIGN_MAGNITUDES = {
    "百": 1e2, "千": 1e3, "万": 1e4, "萬": 1e4, "亿": 1e8, "億": 1e8, "兆": 1e12, "백": 1e2, "천": 1e3, "만": 1e4, "억": 1e8,
}  # fmt: skip
_HAN_DIGITS = {**{sign: value for value, sign in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2}

#: Words after a number that describe it, so they are not the counted thing.
_NO_NOUN = frozenset(
    word
    for line in """
    and to than but plus minus times less more fewer greater over under above below right maybe perhaps possibly squared
    cubed factorial off out versus vs until through thru between about approximately at least most per cube square root power
    if then else different other higher lower larger smaller half double triple twice once pair pairs couple
    или и не нет примерно 或 和 不 到
    """.splitlines()
    for word in line.split()
)


def _in_words(text: str) -> tuple[float, str] | None:
    """The number that `text` begins with in English words or Chinese numerals, and the rest."""
    if han := re.match(r"[零〇一二两三四五六七八九十百千]{1,9}", text):
        value = _han(han[0])
        return None if value is None else (value, text[han.end() :])
    total, current, scale, end = 0.0, -1.0, math.inf, 0  # `current` is below the last magnitude; −1: nothing yet
    for word in re.finditer(r"([a-z]+)(?:[\s-]+(?:and\s+)?|$|(?=[^a-z]))", text.casefold()[:200]):
        if word.start() != end:
            break
        if (value := _CARDINALS.get(word[1])) is not None:
            follows = (value < 10 and current % 100 >= 20 and current % 10 == 0) or current % 100 == 0 < current
            if current >= 0 and not (follows and value):
                return None  # "five six" are two numbers
            current = max(current, 0.0) + value
        elif current >= 0 and word[1] == "hundred":
            if current >= 100:
                return None
            current *= 100
        elif current >= 0 and word[1] in ("thousand", "million", "billion"):
            if (magnitude := _MAGNITUDES[word[1]]) >= scale:
                return None
            total, current, scale = total + current * magnitude, -1.0, magnitude
        else:
            break
        end = word.end()
    return (total + max(current, 0.0), text[end:]) if end else None


def _han(text: str) -> float | None:
    """A Chinese numeral below 10,000."""
    value, digit = 0, None
    for sign in text:
        if sign in _HAN_DIGITS:
            if digit:
                return None
            digit = _HAN_DIGITS[sign]
        else:
            value += (1 if digit is None else digit) * {"十": 10, "百": 100, "千": 1000}[sign]
            digit = None
    return float(value + (digit or 0))


# ------------------------------------------------------------------------------------------------- digits

_DIGITS = r"(?:\d{1,3}(?:[ ']\d{3})+(?!\d)(?:[.,]\d+)?|\d[\d.,]*|[.,]\d+)"
_FIGURES = re.compile(
    rf"(?P<sign>[-+]?|minus\s|negative\s)\s*(?P<money>[{MONEY}])?\s*(?P<inner>-?)(?P<digits>{_DIGITS})(?P<exp>[eE][-+]?\d{{1,3}}(?![\d.]))?"
    rf"(?:\s?\^\s?(?P<power>[-+]?\d{{1,3}})(?!\d))?"
    rf"(?:\s?[×x*]\s?(?P<times>{_DIGITS})(?:\s?\^\s?(?P<times_power>[-+]?\d{{1,3}})(?!\d))?)?"
    rf"(?:\s(?P<part>\d{{1,6}})\s?/\s?(?P<of>\d{{1,6}})|\s?/\s?(?P<over>\d[\d.]*))?(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_DEBT = re.compile(rf"\(\s*([{MONEY}]\s?[\d.,]+)\s*\)")
_AROUND = re.compile(r"[(\[]\s*([^()\[\],]*)\s*[)\]]")


def _value(digits: str) -> float | None:
    """The value of digits with their separators: "1,234.5", "1.234,5", "1 234", "0,5"; None where they are none of these.

    A single comma with three digits after it groups ("1,234"), any other is a decimal comma; a single period is decimal.
    """
    digits = digits.replace(" ", "").replace("'", "")
    commas, periods = digits.count(","), digits.count(".")
    if commas and periods:
        decimal, group = (",", ".") if digits.rfind(",") > digits.rfind(".") else (".", ",")
        if digits.count(decimal) > 1:
            return None
        whole, _, part = digits.partition(decimal)
    elif commas > 1 or periods > 1 or (commas and re.fullmatch(r"[1-9]\d{0,2},\d{3}", digits)):
        group, whole, part = "," if commas else ".", digits, ""
    else:
        group, (whole, _, part) = "", digits.replace(",", ".").partition(".")
    if group in whole and group:
        if not re.fullmatch(rf"\d{{1,3}}(?:\{group}\d{{2,3}})*\{group}\d{{3}}", whole):
            return None
        whole = whole.replace(group, "")
    return float(f"{whole or '0'}.{part or '0'}")


def _figures(text: str) -> tuple[float, str, str] | None:
    """The value that `text` begins with in figures, its money sign, and the rest."""
    found = _FIGURES.match(text)
    if found is None:
        return None
    value = _value(found["digits"].rstrip(",."))
    if value is None:
        return None
    try:
        value *= float(f"1{found['exp'].lower()}") if found["exp"] else 1.0
        value **= int(found["power"]) if found["power"] else 1
        if found["times"]:
            times = _value(found["times"].rstrip(",."))
            if times is None:
                return None
            value *= times ** (int(found["times_power"]) if found["times_power"] else 1)
        if found["part"]:
            value += int(found["part"]) / int(found["of"])
        if found["over"]:
            value /= float(found["over"].rstrip("."))
    except (ArithmeticError, ValueError):
        return None
    minus = (found["sign"].strip().casefold() in ("-", "minus", "negative")) != bool(found["inner"])
    return -value if minus else value, found["money"] or "", found["rest"]


# ------------------------------------------------------------------------------------------- what is said of it

_AROUND_VALUE = re.compile(
    r"(?i)(?:(?:about|approximately|approx\.?|roughly|around|circa|ca\.|nearly|almost|exactly|precisely|only|just|equals?|примерно|около"
    r"|约|大约|共|حوالي)(?![^\W\d_\u3400-\u9fff])|[≈~=:#№])\s*"
)
_GENERIC_LEAD = re.compile(
    r"[^\W\d_][^\d:=≈~<>≤≥±]{0,80}?(?:\s(?:is|are|was|were|equals|has|have|shows?|see|counts?|counted|gets?|got|find|found|contains?)\s|\s?[:=≈~]\s?)"
)
_EQUATION = re.compile(r"[\d\s.,+×x*/÷()-]+=\s*(?=[^=]+$)")
_ONE = re.compile(r"(?i)^an?\s+(?=(?:hundred|thousand|million|billion|dozen|half|quarter|third|fifth|tenth)\b)")
_HYPHEN = re.compile(r"-(?=[^\W\d_])")
_BRACKET = re.compile(r"\(([^()]*)\)")
_ORDINAL_SIGN = re.compile(r"(?:st|nd|rd|th)\b", re.IGNORECASE)
_NOUN = re.compile(r"[^\W\d_]+(?:[-'/][^\W\d_]+)*\.?(?:,?\s+[^\W\d_]+(?:[-'][^\W\d_]+)*\.?){0,7}")


def parse_number(text: str) -> Number | None:
    """The number that `text` states, or None: "1,000", "1.234,5", "-3.5e2", "$5", "3/4", "1 1/2", "10^3", "14 %", "5 km",
    "2 million", "seven", "third".

    A count of something ("5 apples") is a number; a range, a bound, several numbers, a term ("5x") and what is taken back
    are not. Of a corrected answer the last claim counts.
    """
    text = last_claim(clean(text)).rstrip(".!;, ")
    if debt := _DEBT.fullmatch(text):
        text = "-" + debt[1]
    elif around := _AROUND.fullmatch(text):
        text = around[1].strip()
    text = _without_number_leads(text)
    if (ordinal := _ORDINALS.get(text.casefold())) is not None:
        return Number(ordinal)
    sign = 1.0
    if word := re.match(r"(?i)(?:minus|negative)\s+(?=[a-z])", text):
        sign, text = -1.0, text[word.end() :]
    if (words := _in_words(text)) is not None:
        value, money, rest = sign * words[0], "", f" {words[1]}"
    elif (figures := _figures(text)) is not None:
        value, money, rest = figures
    else:
        return None
    return _with_unit(value, money, rest)


def _without_number_leads(text: str) -> str:
    text = without_leads(text)
    if lead := _GENERIC_LEAD.match(text):
        before = lead[0]
        if not (denies(before) or several(before) or _in_words(before)):
            text = text[lead.end() :]
    if equation := _EQUATION.match(text):
        text = text[equation.end() :]
    for _ in range(4):
        if not (lead := _AROUND_VALUE.match(text)):
            break
        text = text[lead.end() :]
    return _ONE.sub("one ", text)


def _with_unit(value: float, money: str, rest: str) -> Number | None:
    """The number with the words after it: a magnitude, a part, a unit or the counted thing; None for other words."""
    hyphen = _HYPHEN.match(rest)  # "7-year"
    attached = hyphen is None and rest[:1] not in ("", " ")
    rest = (rest[1:] if hyphen else rest).strip()
    if attached and (sign := _ORDINAL_SIGN.match(rest)):
        rest, attached = rest[sign.end() :].strip(), False
    for _ in range(2):
        value, rest, attached = _magnified(value, rest, attached)
    word, _, after = rest.partition(" ")
    if not attached and (part := _PARTS.get(word.casefold())) and (value == 1) != word.endswith("s"):
        value, rest = value / part, after.strip()
    if not math.isfinite(value):
        return None
    if bracket := _BRACKET.fullmatch(rest):  # "7 (seven)", "7 (metres)"
        said_again = parse_number(bracket[1])
        rest = "" if said_again and said_again.value == value else bracket[1]
    rest = rest.rstrip(".!;,) ")
    if not rest:
        return Number(value, money)
    unit = _unit(rest, attached)
    if unit is None or (money and unit not in ("", money)):
        return None
    return Number(value, money or unit)


def _magnified(value: float, rest: str, attached: bool) -> tuple[float, str, bool]:
    """`value` times the magnitude that `rest` begins with, if any."""
    word = re.match(r"[^\W\d_]+\.?", rest)
    if word is None:
        return value, rest, attached
    if (factor := _SIGN_MAGNITUDES.get(rest[0])) and unit_of(rest) is None:  # "5 千克" are kilograms
        return value * factor, rest[1:].strip(), rest[1:2] not in ("", " ")
    name = word[0].rstrip(".")
    factor = _MAGNITUDES.get(name.casefold()) or (_SUFFIXES.get(name) if attached else None)
    if factor is None:
        return value, rest, attached
    return value * factor, rest[word.end() :].strip(), False


def _unit(rest: str, attached: bool) -> str | None:
    """The unit that `rest` names: a known one first, else what is counted; None where `rest` is neither."""
    if unit_of(rest) is not None:
        return rest.casefold().strip(". ")
    words = rest.split()
    for count in (3, 2, 1):
        if count < len(words) and unit_of(" ".join(words[:count])) is not None and _noun(" ".join(words[count:])):
            return " ".join(words[:count]).casefold().strip(".,")
    if attached and rest[0].isascii():
        return None  # "5x" is a term
    return words[0].casefold().strip(".,") if _noun(rest) else None


def _noun(text: str) -> bool:
    """Whether `text` can be what is counted: words, none of which says something of the number."""
    if not _NOUN.fullmatch(text) or denies(text) or several(text):
        return False
    words = {word.strip(".,'").casefold() for word in re.split(r"[\s-]", text)}
    return not words & (_NO_NOUN | _CARDINALS.keys() | _PARTS.keys() | _ORDINALS.keys() | _MAGNITUDES.keys())


# ------------------------------------------------------------------------------------------------- comparing

_PERCENT_ASKED = re.compile(r"\b(?:in|as an?|what|which|how many|the)\s+(?:%|percent)", re.IGNORECASE)


def asks_percent(question: str) -> bool:
    """Whether the question wants its number in per cent."""
    return bool(_PERCENT_ASKED.search(question))


def relative_error(value: float, truth: float) -> float:
    """|value − truth| / |truth|; at truth 0 it is 0 for an exact value and infinite for any other."""
    if value == truth:
        return 0.0
    return abs(value - truth) / abs(truth) if truth else math.inf


def in_common_unit(answer: str, solution: str, question: str = "") -> tuple[float, float] | None:
    """The two numbers in the solution's unit; None where they cannot be compared.

    "14%" is 0.14; where the question asks for per cent it is 14 as well, and the closer of the two counts. A solution in
    per cent takes the bare number, too. A unit that only one of the two names is no difference. "5!" is an exclaimed 5, but
    the factorial in a solution, and where that is the solution.
    """
    a, s = parse_number(answer), _factorial(solution) or parse_number(solution)
    if s and (product := _factorial(answer)) and product.value == s.value:
        a = product
    if a is None or s is None:
        return None
    a_percent, s_percent = (_of(number) == "%" for number in (a, s))
    if s_percent and (a_percent or not a.unit):
        return a.value, s.value
    if s_percent:
        return None
    if a_percent:
        values = [a.value / 100, a.value] if asks_percent(question) else [a.value / 100]
        return min(values, key=lambda value: relative_error(value, s.value)), s.value
    factor = _factor(a.unit, s.unit)
    return None if factor is None else (a.value * factor, s.value)


def _factorial(text: str) -> Number | None:
    """The number of "5!"; None where `text` is no factorial, or one beyond floating point."""
    text = _without_number_leads(last_claim(clean(text)).rstrip("., "))
    factor = int(text[:-1]) if re.fullmatch(r"\d{1,3}!", text) else 171
    return Number(float(math.factorial(factor))) if factor <= 170 else None


def _of(number: Number) -> str:
    unit = unit_of(number.unit) if number.unit else None
    return unit.of if unit else ""


def _factor(unit: str, wanted: str) -> float | None:
    """The factor from `unit` to `wanted`; None if they measure different quantities."""
    if not unit or not wanted or unit.removesuffix("s") == wanted.removesuffix("s"):
        return 1.0
    a, b = unit_of(unit), unit_of(wanted)
    return a.factor / b.factor if a and b and a.of == b.of else None
