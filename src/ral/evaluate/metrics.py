"""Metrics of the benchmarks: functions from an answer to a score.

A `Metric` takes the body of an answer (as `ral.rewards.answers.extract_answer` gives it), the record and a mode, and returns a
score in [0, 1], or None if the answer cannot be read. Such items count as wrong and are shown as unparsed; nothing is guessed.

`compat` reads answers as lmms-eval 0.7.3 does for the benchmark, with its oddities, so that numbers can be compared with
published ones. It only leaves out random guesses. `strict` reads choices as a careful person would, with
`ral.rewards.answers.parse_choice`, the same way for all benchmarks. Metrics without a choice of letters have one definition only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from ral.data.record import Record
from ral.rewards.answers import Mode, option_texts, parse_choice

Metric = Callable[[str, Record, Mode], float | None]

#: Reads a letter from an answer, given the text of each letter; the letter need not be one of them.
LetterReader = Callable[[str, Mapping[str, str]], str | None]


def choices(record: Record) -> Sequence[str]:
    """The options of a record; `extra["choices"]` where they stand in the question or in the picture already."""
    return record.options or tuple(record.extra.get("choices", ()))


def choice(read: LetterReader) -> Metric:
    """Right or wrong by option letter; `read` is the benchmark's own reading, used in `compat`."""

    def metric(answer: str, record: Record, mode: Mode) -> float | None:
        options = choices(record)
        texts = option_texts(options)
        letter = parse_choice(answer, options) if mode == "strict" else read(answer, texts)
        return float(letter == record.solution) if letter in texts else None

    return metric


# --------------------------------------------------------------------------------------------- letter readers


def leading_letter(answer: str, texts: Mapping[str, str]) -> str | None:
    """CV-Bench: the first letter, whatever follows ("all" is A)."""
    match = re.match(r"[(\s]*([A-Z])", answer, re.IGNORECASE)
    return match[1].upper() if match else None


def announced_letter(answer: str, texts: Mapping[str, str]) -> str | None:
    """BLINK: a first line that is the letter; else the last "answer is B", the last "(B)", or a letter at the start.

    Only letters of the options count, which in the first and last form may begin a word ("all" is A).
    """
    answer, letters = answer.strip(), "".join(texts)
    line = answer.split("\n", 1)[0].strip()
    if len(line) <= 4 and (match := re.match(rf"\(?([{letters}])\)?[.\s:,)]*$", line, re.IGNORECASE)):
        return match[1].upper()
    announced = rf"(?i:answers?(?:\s+is)?\s*[:-]?\s*\(?([{letters}])\)?(?![A-Za-z]))"
    for form in (announced, rf"\(([{letters}])\)"):
        if found := re.findall(form, answer):
            return str(found[-1]).upper()
    match = re.match(rf"[(\s]*([{letters}])", answer, re.IGNORECASE)
    return match[1].upper() if match else None


def whole_letter(answer: str, texts: Mapping[str, str]) -> str | None:
    """MMMU-Pro's vision track: nothing but the letter; the reference parses nothing there."""
    return answer if answer in texts else None


def letter_with_period(answer: str, texts: Mapping[str, str]) -> str | None:
    """MuirBench: "B. …", or nothing but the letter."""
    match = re.match(r"\s*([A-Z])\.", answer) or re.fullmatch(r"\s*([A-Za-z])\s*", answer)
    return match[1].upper() if match else None


_SEARCH_LETTER = [
    r"^([A-D])",
    r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:^|\s)([A-D])(?:\s|$)",
]


def searched_letter(answer: str, texts: Mapping[str, str]) -> str | None:
    """V*: the first pattern that occurs, from "B…" at the start to a letter on its own; else the only A–D there is."""
    answer = answer.strip().upper()
    for pattern in _SEARCH_LETTER:
        if match := re.search(pattern, answer):
            return match[1]
    letters = re.findall("[A-D]", answer)
    return letters[0] if len(letters) == 1 else None


def lone_letter(answer: str, texts: Mapping[str, str]) -> str | None:
    """MVBench: "B. …", else the first A–E that stands alone, in either case (so "a" is A)."""
    match = re.match(r"([A-E])\.\s*.+$", answer, re.IGNORECASE)
    match = match or re.search(r"\b([A-E])\b", _without_punctuation(answer), re.IGNORECASE)
    return match[1].upper() if match else None


_PHRASES = re.compile(
    "The best answer is|The correct answer is|The answer is|The answer|The best option is|The correct option is"
    "|Best answer:|Best option:"
)


def first_capital(answer: str, texts: Mapping[str, str]) -> str | None:
    """LongVideoBench: the first capital A–E anywhere after the usual phrases are cut."""
    match = re.search("[A-E]", _PHRASES.sub("", answer))
    return match[0] if match else None


def mmmu_letter(answer: str, texts: Mapping[str, str]) -> str | None:
    """MMMU-Pro's standard track, NExT-QA: "(B)", else "B ", else "B.", else an option's text in a longer answer; of several, the last."""
    padded = f" {_strip_ends(answer, ',.!?;:' + chr(39))} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in texts if form.format(letter) in padded]
        if found:
            return max(found, key=lambda letter: padded.rfind(place.format(letter)))
    if len(padded.split()) > 5:
        lower = padded.lower()
        found = [letter for letter, text in texts.items() if text.lower() in lower]
        if found:
            return max(found, key=lambda letter: lower.rfind(texts[letter].lower()))
    return None


_ANSWER_IS = (
    "the answer is|answer is|the correct answer is|correct answer is|the best answer is|best answer is"
    "|the correct option is|correct option is|the best option is|best option is|the choice is|choice is"
    "|the correct choice is|correct choice is|i choose|i select|i pick|my answer is|my choice is"
    "|옵션|정답은|답은|답:|答案是|答案为|选|答えは"
)


def ranked_letter(answer: str, texts: Mapping[str, str]) -> str | None:
    """VideoMME, LVBench, VideoMMMU: the letter in the most telling form, the last one within a form.

    From most to least telling: alone at the start, alone at the end, after "the answer is", "(B)", "B.", "B:", "B)",
    "B ", anywhere.
    """
    padded = f" {_strip_ends(answer, ',.!?;:' + chr(39) + chr(34))} "
    bare, lower = padded.strip(), padded.lower()
    starts = [lower.find(phrase) + len(phrase) for phrase in _ANSWER_IS.split("|") if phrase in lower]
    ranked: list[tuple[int, int, str]] = []
    for letter in texts:
        if re.match(letter + r"(?![^\W\d_])", bare):
            ranked.append((10, 0, letter))
        if re.search(r"(?<![^\W\d_])" + letter + "$", bare):
            ranked.append((9, len(padded), letter))
        ranked += [(7, padded.find(letter, start), letter) for start in starts]
        for rank, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "), (0, "{}")):
            ranked.append((rank, padded.rfind(form.format(letter)), letter))
    ranked = [candidate for candidate in ranked if candidate[1] >= 0]
    return max(ranked)[2] if ranked else None


def _strip_ends(text: str, signs: str) -> str:
    """`text` without `signs` at either end, one after the other, as lmms-eval does."""
    text = text.strip()
    for sign in signs:
        text = text.strip(sign)
    return text


# ------------------------------------------------------------------------------------------------ other metrics


def yes_no(answer: str, record: Record, mode: Mode) -> float | None:
    """MME: "yes", or else "no", within the first four characters; "y" and "n" alone count too."""
    said = answer.lower().strip().replace(".", "")
    said = {"y": "yes", "n": "no"}.get(said, said[:4])
    for word in ("yes", "no"):
        if word in said:
            return float(word == record.solution.lower())
    return None


def relaxed(answer: str, record: Record, mode: Mode) -> float:
    """ChartQA: a number within 5 % of the solution, the bound included; other answers exact but for case.

    "14%" is 0.14. A solution of 0 has no relative error and must match as text. The bound is computed in floating
    point as the reference does, so 1.05 for 1 is just outside, and 105 for 100 just inside.
    """
    said, truth = _number(answer), _number(record.solution)
    if said is not None and truth:
        return float(abs(said - truth) / abs(truth) <= 0.05)
    return float(answer.lower() == record.solution.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def vqa_accuracy(answer: str, record: Record, mode: Mode) -> float:
    """VizWiz: min(1, matches/3) among the other annotators, averaged over which annotator is left out.

    `extra["answers"]` holds the annotators' answers; both sides are normalised by `normalise_vqa`.
    """
    said = normalise_vqa(answer)
    matches = [normalise_vqa(other) == said for other in record.extra["answers"]]
    return mean(min(1.0, (sum(matches) - match) / 3) for match in matches)


_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)
# A contraction is recognised without any one of its apostrophes.
_CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in _CONTRACTED.split()
    for place, sign in enumerate(form)
    if sign == "'"
} | {"somebody'd": "somebodyd"}
_NUMERALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_VQA_WORDS = {word: str(value) for value, word in enumerate(_NUMERALS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}


def normalise_vqa(text: str) -> str:
    """EvalAI's normalisation of VQA answers: case, punctuation, articles, number words and contractions."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    words = [_VQA_WORDS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Signs that touch a space anywhere are cut, others become one; periods stay only before a digit."""
    text = before = text.replace("\n", " ").replace("\t", " ").strip()
    in_number = re.search(r"\d,\d", text)
    for sign in ';/[]"{}()=+\\_-><@`,?!':
        touches_space = f"{sign} " in before or f" {sign}" in before
        text = text.replace(sign, "" if touches_space or in_number else " ")
    return re.sub(r"\.(?!\d)", "", text)


_KEYS = (
    "could be |so |is |thus |therefore |final |answer |result |are |in total |total |identify |recognize |calculated as "
    "|counted as |measured as |observed as |concluded as |found to be |equals |determined to be |number of |value is "
    "|adds up to |have |has "
)
_NUMBERS = [
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])",
]  # as in the reference, but each run of digits is tried once


def mmmu_open(answer: str, record: Record, mode: Mode) -> float:
    """VideoMMMU's open questions: the solution occurs in a key part of the answer, or equals a number in it.

    A key part is what follows the last "is", "equals", "answer", … of a line (and "=" in the last line), the shortest
    of these; the whole answer where there is none. Numbers are compared at two decimals.
    """
    lines = answer.strip().strip(".").lower().split("\n")
    parts = []
    for number, line in enumerate(lines, start=1):
        keys = _KEYS + ("|=" if number == len(lines) else "")
        tails = [line.rsplit(key, 1)[-1].strip() for key in keys.split("|") if key in line]
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in ":,.!?;'":
            parts.append(shortest)
    parts = parts or ["\n".join(lines)]
    numbers = [number for part in parts for pattern in _NUMBERS for number in re.findall(pattern, part)]
    said = {form for text in parts + numbers for form in _open_forms(text)}
    for truth in _open_forms(record.solution):
        if truth in said or (isinstance(truth, str) and any(isinstance(s, str) and truth in s for s in said)):
            return 1.0
    return 0.0


def _open_forms(text: str) -> list[str | float]:
    """A number at two decimals, or lower-case text; a single letter must have a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_pro(answer: str, record: Record, mode: Mode) -> float | None:
    """MMMU-Pro: each track is read in its own way."""
    read = whole_letter if record.extra.get("track") == "vision" else mmmu_letter
    return choice(read)(answer, record, mode)


def choice_or_open(read: LetterReader) -> Metric:
    """VideoMMMU: a letter where the record has options, else `mmmu_open`."""
    by_letter = choice(read)

    def metric(answer: str, record: Record, mode: Mode) -> float | None:
        return by_letter(answer, record, mode) if choices(record) else mmmu_open(answer, record, mode)

    return metric


def tempcompass(answer: str, record: Record, mode: Mode) -> float | None:
    """TempCompass by its rules alone; what they cannot decide goes to a judge model there and is unparsed here.

    `extra["track"]` says which rules: "multi-choice" (the whole option, "B", "B.…", "B)…"), "yes_no" (the first word)
    or "caption_matching" (the whole option, its sentence, "Caption B" or "B").
    """
    track, solution = record.extra["track"], record.solution
    if track == "yes_no":
        said = next((word for word in ("yes", "no") if answer.lower().startswith(word)), None)
        return None if said is None else float(said == solution)
    options = choices(record)
    if track == "multi-choice":
        if answer in options:
            return float(answer == solution)
        match = re.fullmatch(r"([A-D])(?:[.)].*)?", answer, re.DOTALL)
        return float(match[1] == solution[0]) if match else None
    sentence = answer.split(") ")[1] if ") " in answer else answer
    for option in options:
        label, _, text = option.partition(": ")
        if answer == option or text in (answer, sentence) or answer.replace(".", "") in (label, label.split()[-1]):
            return float(option == solution)
    return None
